"""The design's invariants, under hundreds of seeded schedules, without faults and with every kind of fault.

Staleness and exactly-once of complete runs, the accounts at every step of the scheduler, and what must hold after any failure: one exception group that
names the actor, everything ended and cleaned up, within the grace. The equality of modes, crash and resume, and same bytes have files of their own.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
import trio

from actors import Evaluation, RLSettings, RunResult, RunSettings, SamplerSettings, Schedule, StopRequest, train_rl
from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.backends.simulated import ALWAYS, Failures, Fault, Hang, SimulatedBackend
from engine.backends.values import SamplingParams
from engine.runtime import ActorsFailed
from engine.runtime.testing import SimulationReport, simulate
from engine.storage import RunDirectory
from engine.storage.files import read_lines
from envs.contracts import Policy
from envs.rollout import FailFast, MinViable, Retry, RolloutLimits, RolloutSettings
from tests.actors.harness import (
    MODES,
    Accountant,
    EnvBroke,
    Record,
    Watched,
    check_complete,
    names_of,
    nothing_left,
    small_backend,
)

STEPS = 3
SEEDS = 40
GRACE = 5.0
TEARDOWN = 10.0
SAMPLING = SamplingParams(max_tokens=40)


@attrs.define
class Trial:
    """One run and what it is run with."""

    seed: int
    schedule: Schedule
    dataset: Watched
    backend: SimulatedBackend
    settings: RLSettings
    options: dict[str, Any] = attrs.field(factory=dict)
    steps: int = STEPS
    plan: tuple[Fault, ...] = ()
    accountant: Accountant = attrs.field(factory=Accountant)
    left_at_return: list[str] = attrs.field(factory=list)
    ended_at: float = 0.0

    @property
    def record(self) -> Record:
        return self.dataset.record

    def run(self) -> SimulationReport[RunResult]:
        async def program() -> RunResult:
            trio.lowlevel.add_instrument(self.accountant)
            try:
                return await train_rl(
                    self.backend,
                    groups=self.dataset,
                    steps=self.steps,
                    schedule=self.schedule,
                    settings=self.settings,
                    **self.options,
                )
            finally:  # at the very moment: nothing may need another turn of the loop to end
                self.ended_at = anyio.current_time()
                self.left_at_return = nothing_left(self.backend, self.record)

        with self.accountant.at_work():
            report = simulate(program, seed=self.seed, horizon=1e4, max_steps=60_000)
        assert self.accountant.checks > 0
        assert self.accountant.wrong == []
        assert self.left_at_return == []
        return report


def make_trial(seed: int, mode: str, *, failures: Failures | None = None, **settings: Any) -> Trial:
    random_ = random.Random(seed * 1000 + sum(map(ord, mode)))
    turns = random_.choice([1, 1, 3])
    dataset = Watched(turns=turns, single_turn=turns == 1 and random_.random() < 0.5, problems=random_.choice([3, 16]))
    backend = small_backend(seed, failures=failures, slots=random_.choice([None, 3]))
    settings.setdefault("rollout", RolloutSettings(SAMPLING, failure=Retry(2)))
    settings.setdefault(
        "sampler", SamplerSettings(slots=random_.choice([None, 2, 5]), deadline=100.0, backoff=0.1, attempts=6)
    )
    return Trial(seed, MODES[mode], dataset, backend, RLSettings(seed=seed, **settings))


@pytest.mark.parametrize("mode", MODES)
def test_without_faults(mode: str) -> None:
    orders = set()
    for seed in range(SEEDS):
        trial = make_trial(seed, mode)
        check_complete(trial.run().unwrap(), trial.backend, trial.schedule, STEPS)
        assert trial.backend.log is not None
        orders.add(tuple(entry.seed for entry in trial.backend.log.sampling))
    assert len(orders) == SEEDS  # the schedules differ


# --- faults that a run survives


def breaks_often(problem: int, where: str, attempt: int) -> bool:
    return attempt == 1 and random.Random(f"{problem} {where}").random() < 0.3


@pytest.mark.parametrize("mode", MODES)
def test_breaking_envs_and_a_flaky_sampler_with_retries(mode: str) -> None:
    broke = retries = 0
    for seed in range(20):
        trial = make_trial(seed, mode, failures=Failures(rates={"sample": 0.2}, after=0.3, seed=seed))
        trial.dataset.breaks = breaks_often
        result = trial.run().unwrap()
        check_complete(result, trial.backend, trial.schedule, STEPS)
        broke += len(trial.record.failed_at)
        assert result.gate is not None
        assert result.gate.failed == 0
        retries += result.sampler.retries
    assert broke > 20
    assert retries > 20


def always_breaks_some(problem: int, where: str, attempt: int) -> bool:
    return problem % 4 == 0 and where == ("reset", "step", "make_envs", "group_rewards", "cleanup")[problem // 4 % 5]


@pytest.mark.parametrize("policy", [Retry(1), MinViable(2), MinViable(1)])
@pytest.mark.parametrize("mode", MODES)
def test_groups_that_always_fail_are_replaced(mode: str, policy: Retry | MinViable) -> None:
    failed = 0
    for seed in range(8):
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
    for seed in range(8):
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
    assert retries > 4


# --- faults that end a run


async def broken_evaluation(policy: Policy) -> Mapping[str, float]:
    await anyio.sleep(0.5)
    raise EnvBroke("evaluation")


async def slow_evaluation(policy: Policy) -> Mapping[str, float]:
    await anyio.sleep(50.0)
    return {"score": 1.0}


def breaks(where: str) -> Callable[[Trial], None]:
    def arm(trial: Trial) -> None:
        trial.dataset.breaks = lambda problem, place, attempt: place == where and problem % 3 == 1
        trial.dataset.problems = max(trial.dataset.problems, 5)
        trial.settings = attrs.evolve(trial.settings, rollout=RolloutSettings(SAMPLING, failure=FailFast()))

    return arm


def backend_fails(*plan: Fault, **settings: Any) -> Callable[[Trial], None]:
    def arm(trial: Trial) -> None:
        trial.plan = plan
        trial.backend = small_backend(trial.seed, failures=Failures(plan=plan))
        trial.settings = attrs.evolve(trial.settings, **settings)

    return arm


def evaluates(evaluation: Evaluation) -> Callable[[Trial], None]:
    def arm(trial: Trial) -> None:
        trial.options["evaluations"] = [evaluation]

    return arm


def learning_rate_breaks(trial: Trial) -> None:
    def factor(step: int) -> float:
        if step == 1:
            raise EnvBroke("schedule")
        return 1.0

    trial.settings = attrs.evolve(trial.settings, learning_rate=factor)


def dataset_breaks(trial: Trial) -> None:
    class Broken(Watched):
        def __getitem__(self, index: int) -> Any:
            if index % 3 == 1:
                raise EnvBroke("dataset")
            return super().__getitem__(index)

    trial.dataset = Broken(turns=trial.dataset.turns)


FAST = RolloutSettings(SAMPLING, failure=FailFast())
FATAL: dict[str, tuple[Callable[[Trial], None], str, type[Exception]]] = {
    "make_envs": (breaks("make_envs"), "rollouts", EnvBroke),
    "reset": (breaks("reset"), "rollouts", EnvBroke),
    "step": (breaks("step"), "rollouts", EnvBroke),
    "group_rewards": (breaks("group_rewards"), "rollouts", EnvBroke),
    "cleanup": (breaks("cleanup"), "rollouts", EnvBroke),
    "sampler gives up": (
        backend_fails(
            Fault("sample", 3, TransientError, times=ALWAYS), rollout=FAST, sampler=SamplerSettings(attempts=2)
        ),
        "rollouts",
        BackendError,
    ),
    "sampler rejects": (
        backend_fails(Fault("sample", 4, RequestRejected, times=ALWAYS), rollout=FAST),
        "rollouts",
        RequestRejected,
    ),
    "forward_backward": (
        backend_fails(Fault("forward_backward", 2, lambda: BackendError("no memory"))),
        "trainer",
        BackendError,
    ),
    "forward_backward at submission": (
        backend_fails(Fault("forward_backward", 2, lambda: RequestRejected("datum 0"), at_submission=True)),
        "trainer",
        RequestRejected,
    ),
    "optim_step": (backend_fails(Fault("optim_step", 2, lambda: BackendError("no"))), "trainer", BackendError),
    "snapshot": (backend_fails(Fault("snapshot", 3, lambda: BackendError("no"))), "trainer", BackendError),
    "learning rate": (learning_rate_breaks, "trainer", EnvBroke),
    "dataset": (dataset_breaks, "source", ValueError),
    "evaluation": (evaluates(Evaluation("broken", broken_evaluation, every=1)), "evaluator", EnvBroke),
    "blocking evaluation": (
        evaluates(Evaluation("broken", broken_evaluation, every=1, blocking=True)),
        "evaluator",
        EnvBroke,
    ),
}


@pytest.mark.parametrize("fault", FATAL)
def test_whatever_fails_ends_the_run_with_its_name(fault: str) -> None:
    arm, actor, kind = FATAL[fault]
    modes = list(MODES)
    for seed in range(18):
        trial = make_trial(seed, modes[seed % len(modes)])
        arm(trial)
        error = trial.run().error
        assert isinstance(error, ActorsFailed), (fault, seed, error)
        assert names_of(error) == [f"in actor '{actor}'"] * len(error.exceptions), (fault, seed)
        assert error.split(kind)[1] is None, (fault, seed, error)
        assert actor in str(error)
        if trial.record.failed_at:
            assert trial.ended_at - min(trial.record.failed_at) <= GRACE + TEARDOWN


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [fault for fault in FATAL if "evaluation" not in fault])
async def test_whatever_fails_on_both_event_loops(fault: str) -> None:
    arm, actor, kind = FATAL[fault]
    trial = make_trial(1, "async-3")
    arm(trial)
    trial.dataset.pace = 0.0
    settings = attrs.evolve(trial.settings, sampler=SamplerSettings(slots=2, backoff=0.0, attempts=2))
    backend = SimulatedBackend(failures=Failures(plan=trial.plan))
    with pytest.raises(ActorsFailed) as caught:
        await train_rl(backend, groups=trial.dataset, steps=20, schedule=trial.schedule, settings=settings)
    assert names_of(caught.value) == [f"in actor '{actor}'"] * len(caught.value.exceptions)
    assert caught.value.split(kind)[1] is None
    assert nothing_left(backend, trial.record) == []


@pytest.mark.parametrize("mode", MODES)
def test_hanging_teardown_is_given_up(mode: str) -> None:
    """The grace holds even where a cleanup never returns."""

    class Sticky(Watched):
        def __getitem__(self, index: int) -> Any:
            group = super().__getitem__(index)
            clean = group.cleanup

            async def cleanup() -> None:
                await clean()
                await anyio.sleep_forever()

            group.cleanup = cleanup  # type: ignore[method-assign]
            return group

    for seed in range(3):
        trial = make_trial(seed, mode, rollout=RolloutSettings(SAMPLING, RolloutLimits(teardown=2.0), FailFast()))
        trial.dataset = Sticky()
        error = trial.run().error
        assert isinstance(error, ActorsFailed)
        assert set(names_of(error)) == {"in actor 'rollouts'"}
        assert "cleanup of group WatchedGroup" in repr(error.exceptions)
        assert "within 2 s" in repr(error.exceptions)


@pytest.mark.parametrize("mode", MODES)
def test_slow_evaluation_delays_nothing_but_its_own_report(mode: str) -> None:
    for seed in range(5):
        quick = make_trial(seed, mode)
        without = quick.run().unwrap()
        trial = make_trial(seed, mode)
        trial.options["evaluations"] = [Evaluation("slow", slow_evaluation, every=2)]
        result = trial.run().unwrap()
        check_complete(result, trial.backend, trial.schedule, STEPS)
        assert [report.version for report in result.evaluations] == [0, 2, 3]
        assert [row["time/elapsed"] for row in result.rows] == pytest.approx(
            [row["time/elapsed"] for row in without.rows], abs=5.0
        )


# --- the disk


def disk_full_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    append = RunDirectory.append

    def full(self: RunDirectory, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, *args, **options)

    monkeypatch.setattr(RunDirectory, "append", full)


@pytest.mark.parametrize("mode", MODES)
def test_full_disk_and_failing_save(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        trial = make_trial(seed, mode)
        trial.options["run"] = RunSettings(tmp_path / f"disk {seed}", checkpoint_every=1)
        with monkeypatch.context() as patch:
            disk_full_at(1 + 3 * seed, patch)
            error = trial.run().error
        assert isinstance(error, ActorsFailed), seed
        assert names_of(error) == ["in actor 'logger'"]
        assert "No space left" in str(error.exceptions[0])

        trial = make_trial(seed, mode)
        trial.backend = small_backend(
            seed, failures=Failures(plan=(Fault("save_state", 2, lambda: BackendError("quota")),))
        )
        trial.options["run"] = RunSettings(tmp_path / f"save {seed}", checkpoint_every=1)
        error = trial.run().error
        assert isinstance(error, ActorsFailed), seed
        assert names_of(error) == ["in actor 'logger'"]
        assert (tmp_path / f"save {seed}" / "checkpoints" / "000001").exists()


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
