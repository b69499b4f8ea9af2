"""The design's invariants, under hundreds of seeded schedules, without faults and with those that a run survives.

Staleness and exactly-once of complete runs, the accounts at every step of the scheduler. What must hold after a failure that ends the run is in
test_failures.py; the equality of modes, crash and resume, and same bytes have files of their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from actors import RunResult, RunSettings, SamplerSettings, StopRequest
from engine.backends.simulated import Failures, Fault, Hang
from engine.storage.files import read_lines
from envs.rollout import MinViable, Retry, RolloutLimits, RolloutSettings
from tests.actors.harness import (
    MODES,
    check_complete,
)
from tests.actors.trials import SAMPLING, STEPS, Trial, always_breaks_some, make_trial
from tests.thoroughness import seeds


@pytest.mark.parametrize("mode", MODES)
def test_without_faults(mode: str) -> None:
    orders = set()
    for seed in seeds(12, 40):
        trial = make_trial(seed, mode)
        check_complete(trial.run().unwrap(), trial.backend, trial.schedule, STEPS)
        assert trial.backend.log is not None
        orders.add(tuple(entry.seed for entry in trial.backend.log.sampling))
    assert len(orders) == len(seeds(12, 40))  # the schedules differ


# --- faults that a run survives


def breaks_often(problem: int, where: str, attempt: int) -> bool:
    return attempt == 1 and random.Random(f"{problem} {where}").random() < 0.3


@pytest.mark.parametrize("mode", MODES)
def test_breaking_envs_and_a_flaky_sampler_with_retries(mode: str) -> None:
    broke = retries = 0
    for seed in seeds(8, 20):
        trial = make_trial(seed, mode, failures=Failures(rates={"sample": 0.2}, after=0.3, seed=seed))
        trial.dataset.breaks = breaks_often
        result = trial.run().unwrap()
        check_complete(result, trial.backend, trial.schedule, STEPS)
        broke += len(trial.record.failed_at)
        assert result.gate is not None
        assert result.gate.failed == 0
        retries += result.sampler.retries
    assert broke > 8
    assert retries > 8


@pytest.mark.parametrize("policy", [Retry(1), MinViable(2), MinViable(1)])
@pytest.mark.parametrize("mode", MODES)
def test_groups_that_always_fail_are_replaced(mode: str, policy: Retry | MinViable) -> None:
    failed = 0
    for seed in seeds(3, 8):
        trial = make_trial(seed, mode, rollout=RolloutSettings(SAMPLING, failure=policy))
        trial.dataset.breaks = always_breaks_some
        trial.dataset.problems = 17
        result = trial.run().unwrap()
        check_complete_with_survivors(result, trial)
        assert result.gate is not None
        failed += result.gate.failed
    assert failed > 0


def check_complete_with_survivors(result: RunResult, trial: Trial) -> None:
    assert result.ending == "complete"
    assert [row["groups/trained"] for row in result.rows] == [trial.schedule.groups_per_step] * STEPS
    assert result.gate is not None
    assert result.gate.unsettled == 0
    if trial.schedule.bound == "hard":
        assert max(row["staleness/max"] for row in result.rows) <= trial.schedule.max_staleness
    assert sum(row["groups/failed"] for row in result.rows) <= result.gate.failed


@pytest.mark.parametrize("mode", MODES)
def test_lost_requests_and_hanging_steps_run_into_their_limits(mode: str) -> None:
    """A server that loses requests: the deadline gives them up. An env that hangs: the wall clock does."""

    def hangs(problem: int, where: str, attempt: int) -> bool | str:
        return "hang" if where == "step" and problem % 3 == 0 and attempt == 1 else False

    retries = 0
    for seed in seeds(4, 8):
        lost = Fault("sample", 2 + seed, Hang(), times=2)
        trial = make_trial(
            seed,
            mode,
            failures=Failures(plan=(lost,)),
            rollout=RolloutSettings(SAMPLING, RolloutLimits(wall_clock=60.0), Retry(3)),
            sampler=SamplerSettings(deadline=12.0, backoff=0.1),
        )
        trial.dataset.breaks = hangs
        result = trial.run().unwrap()
        check_complete(result, trial.backend, trial.schedule, STEPS)
        retries += result.sampler.retries
    assert retries > 2


@attrs.frozen
class StopsAtOnce:
    """An observer that asks the run to stop when it sees a step."""

    stop: StopRequest

    def step(self, row: Mapping[str, float]) -> None:
        self.stop()

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.mark.parametrize("mode", MODES)
def test_stop_request_ends_after_the_step_under_way(mode: str) -> None:
    for seed in range(5):
        trial = make_trial(seed, mode)
        stop = StopRequest()
        trial.options |= {"stop": stop, "observers": [StopsAtOnce(stop)]}
        result = trial.run().unwrap()
        assert result.ending == "stopped"
        assert 1 <= result.version < STEPS
        assert len(result.rows) == result.version


@pytest.mark.parametrize("mode", MODES)
def test_the_journal_tells_what_became_of_every_ticket(mode: str, tmp_path: Path) -> None:
    """Also of those that were filtered or failed after the last step."""
    for seed in range(3):
        trial = make_trial(seed, mode, rollout=RolloutSettings(SAMPLING, failure=Retry(1)))
        trial.dataset.breaks = always_breaks_some
        trial.dataset.problems = 17
        trial.dataset.reward = lambda problem, member, completion: float(member * (problem % 3))
        trial.settings = attrs.evolve(trial.settings, epochs=1)
        trial.options["run"] = RunSettings(tmp_path / str(seed))
        trial.steps = 50  # the problems run out before
        result = trial.run().unwrap()
        assert result.ending == "exhausted"
        fates: dict[int, list[str]] = {}
        for event in read_lines(tmp_path / str(seed) / "events.jsonl"):
            fates.setdefault(event["ticket"], []).append(event["event"])
        assert sorted(fates) == list(range(17))
        assert result.gate is not None
        for fate in fates.values():
            assert fate in (["admitted", "finished", "trained"], ["admitted", "filtered"], ["admitted", "failed"])
        last = [fate[-1] for fate in fates.values()]
        assert last.count("trained") == result.gate.trained
        assert last.count("filtered") == result.gate.filtered > 0
        assert last.count("failed") == result.gate.failed > 0
