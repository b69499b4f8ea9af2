"""Whatever fails, wherever: one exception group that names the actor, everything ended and cleaned up, within the grace."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors import Evaluation, RunSettings, SamplerSettings, train_rl
from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.backends.simulated import ALWAYS, Failures, Fault, SimulatedBackend
from engine.runtime import ActorsFailed
from engine.storage import RunDirectory
from envs.contracts import Policy
from envs.rollout import FailFast, RolloutLimits, RolloutSettings
from tests.actors.harness import (
    MODES,
    EnvBroke,
    Watched,
    check_complete,
    names_of,
    nothing_left,
    small_backend,
)
from tests.actors.trials import SAMPLING, STEPS, Trial, make_trial
from tests.thoroughness import seeds

GRACE = 5.0
TEARDOWN = 10.0


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
    for seed in seeds(len(MODES), 18):
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
