"""Defects that RL loops in the field have had, each shown to be impossible here. Named after what happened there."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from actors import (
    Evaluation,
    RLSettings,
    RunResult,
    RunSettings,
    Schedule,
    group_evaluation,
    train_rl,
    train_supervised,
)
from engine.backends import Completion, Datum, ModelInput, SamplingParams
from engine.backends.simulated import Constant, SamplerModel, SimulatedBackend, TrainerModel
from engine.runtime import ActorsFailed
from engine.runtime.jobs import BudgetExceeded
from engine.runtime.processes import WorkerPool
from engine.runtime.testing import simulate
from engine.storage import RunDirectory
from envs.contracts import Env, GroupBuilder, Observation, Policy, Step
from envs.rollout import FailFast, GroupFailed, Retry, RolloutSettings, play_group
from tests.actors.harness import (
    MODES,
    EnvBroke,
    Watched,
    check_complete,
    names_of,
    nothing_left,
    small_backend,
    training_of,
)
from tests.actors.scenarios import Batches, make_backend
from tests.runtime.worker_jobs import burn
from tests.thoroughness import seeds

SAMPLING = SamplingParams(max_tokens=20)
STREAMING = Schedule(groups_per_step=4, minibatches=4)
ASYNC = Schedule(groups_per_step=4, max_staleness=2)


def run(
    dataset: Any,
    schedule: Schedule,
    *,
    steps: int | None = 3,
    backend: SimulatedBackend | None = None,
    seed: int = 0,
    **options: Any,
) -> RunResult:
    backend = backend or small_backend()
    options.setdefault("settings", RLSettings(rollout=RolloutSettings(SAMPLING), seed=1))

    async def program() -> RunResult:
        return await train_rl(backend, groups=dataset, steps=steps, schedule=schedule, **options)

    return simulate(program, seed=seed, horizon=1e5, max_steps=200_000).unwrap()


def only_even(problem: int, member: int, completion: Completion) -> float:
    """Odd problems teach nothing."""
    return float(member) if problem % 2 == 0 else 1.0


def timed_backend(rollout: float, train: float) -> SimulatedBackend:
    return SimulatedBackend(
        SamplerModel(seconds=Constant(rollout), sec_per_token=rollout / 8),
        TrainerModel(per_call=train),
        record=True,
    )


# 1


def test_streaming_with_a_raising_builder_and_fail_fast_ends_in_an_error_not_in_a_hang() -> None:
    dataset = Watched(breaks=lambda problem, where, attempt: where == "make_envs" and problem == 2)
    settings = RLSettings(rollout=RolloutSettings(SAMPLING, failure=FailFast()), seed=1)
    with pytest.raises(ActorsFailed) as caught:
        run(dataset, STREAMING, settings=settings, steps=20)
    assert names_of(caught.value) == ["in actor 'rollouts'"]
    assert caught.group_contains(EnvBroke, match="make_envs of problem 2")


# 2


@pytest.mark.parametrize("minibatches", [1, 3, 4])
def test_streaming_with_a_ragged_last_batch_trains_it(minibatches: int) -> None:
    result = run(Watched(problems=10), Schedule(groups_per_step=4, minibatches=minibatches), steps=None)
    assert [row["groups/trained"] for row in result.rows] == [4, 4, 2]
    assert result.ending == "complete"


# 3


@pytest.mark.parametrize("mode", MODES)
def test_every_group_filtered_takes_no_step_without_a_gradient_and_says_so(mode: str) -> None:
    backend = small_backend()
    dataset = Watched(problems=10, reward=lambda problem, member, completion: 1.0)
    result = run(dataset, MODES[mode], steps=None, backend=backend)
    assert result.ending == "exhausted"
    assert result.version == 0
    assert result.rows == []
    assert backend.log is not None
    assert {entry.call for entry in backend.log.training} == {"snapshot"}

    settings = RLSettings(rollout=RolloutSettings(SAMPLING), constant_limit=20)
    result = run(dataset, MODES[mode], steps=5, settings=settings)  # the problems never end here
    assert result.ending == "nothing_to_learn"
    assert result.version == 0


# 4


def test_async_with_half_the_groups_filtered_trains_every_step_or_says_that_problems_ran_out() -> None:
    dataset = Watched(problems=32, reward=only_even)
    backend = small_backend()
    check_complete(run(dataset, ASYNC, steps=4, backend=backend), backend, ASYNC, 4)
    result = run(dataset, ASYNC, steps=None)  # one walk: 16 of the 32 can be trained
    assert result.ending == "exhausted"
    assert [row["groups/trained"] for row in result.rows] == [4, 4, 4, 4]


# 5


def test_async_with_a_dataset_larger_than_a_step_throws_no_rollout_away() -> None:
    for schedule in (ASYNC, Schedule(groups_per_step=3, max_staleness=1, minibatches=2)):
        backend = small_backend()
        result = run(Watched(problems=10), schedule, steps=None, backend=backend)
        assert result.gate is not None
        assert (result.gate.admitted, result.gate.trained) == (10, 10)
        assert result.sampler.requests == 20  # two members each
        assert sum(len(data) for data in training_of(backend).values()) == 20


# 6


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_async_with_rollouts_of_20_ms_and_training_of_50_wastes_none(staleness: int) -> None:
    backend = timed_backend(rollout=0.02, train=0.05)
    result = run(Watched(), Schedule(groups_per_step=2, max_staleness=staleness), steps=12, backend=backend)
    assert result.gate is not None
    assert result.gate.admitted == result.gate.trained == 24
    assert max(row["staleness/max"] for row in result.rows) <= staleness


# 7


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_async_with_slow_training_takes_all_the_steps_it_was_asked_for(staleness: int) -> None:
    backend = timed_backend(rollout=0.02, train=20.0)
    result = run(Watched(), Schedule(groups_per_step=2, max_staleness=staleness), steps=12, backend=backend)
    assert result.version == 12
    assert result.ending == "complete"


# 8


def test_async_with_a_raising_worker_leaves_no_task_alive() -> None:
    dataset = Watched(breaks=lambda problem, where, attempt: where == "step" and problem == 5)
    backend = SimulatedBackend(SamplerModel(), TrainerModel())  # no time passes: this is about asyncio's tasks
    settings = RLSettings(rollout=RolloutSettings(SAMPLING, failure=FailFast()), seed=1)
    alive: set[Any] = set()

    class Instant(Watched):
        def __getitem__(self, index: int) -> GroupBuilder:
            return InstantGroup(index)

    async def main() -> None:
        with pytest.raises(ActorsFailed, match="rollouts"):
            await train_rl(backend, groups=Instant(), steps=50, schedule=ASYNC, settings=settings)
        alive.update(asyncio.all_tasks() - {asyncio.current_task()})

    anyio.run(main, backend="asyncio")
    assert alive == set()
    with pytest.raises(ActorsFailed):
        run(dataset, ASYNC, settings=settings, steps=20)
    assert dataset.record.calls == 0


class InstantEnv:
    def __init__(self, problem: int) -> None:
        self.problem = problem

    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([1, self.problem]))

    async def step(self, completion: Completion) -> Step:
        if self.problem == 5:
            raise EnvBroke("problem 5")
        return Step(float(completion.tokens[0]))


class InstantGroup(GroupBuilder):
    def __init__(self, problem: int) -> None:
        self.problem = problem

    async def make_envs(self) -> Sequence[Env]:
        return [InstantEnv(self.problem) for _ in range(3)]


# 9


@pytest.mark.parametrize("mode", ["async", "async-3", "async-turn"])
def test_async_with_slow_evaluation_skips_none_and_keeps_the_metrics_in_order(mode: str) -> None:
    async def slow(policy: Policy) -> Mapping[str, float]:
        await anyio.sleep(40.0)
        return {"score": 1.0}

    result = run(Watched(), MODES[mode], steps=6, evaluations=[Evaluation("slow", slow, every=1)])
    assert [report.version for report in result.evaluations] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in result.rows] == list(range(6))


# 10


@pytest.mark.parametrize("mode", MODES)
def test_async_checkpoint_labelled_k_holds_k_optimizer_steps(mode: str, tmp_path: Path) -> None:
    backend = small_backend()
    settings = RunSettings(tmp_path / "run", checkpoint_every=1, keep_checkpoints=None)
    run(Watched(), MODES[mode], steps=5, backend=backend, run=settings)
    for step in range(1, 6):
        directory = tmp_path / "run" / "checkpoints" / f"{step:06d}"
        other = small_backend()

        async def load(directory: Path = directory, other: SimulatedBackend = other) -> None:
            await other.load_state(directory / "trainer").result()

        simulate(load).unwrap()
        assert other.version == step
        assert json.loads((directory / "work.json").read_text())["gate"]["version"] == step
    assert other._weights == backend._weights


# 11


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_supervised_resume_with_batches_submitted_ahead_trains_none_twice(ahead: int, tmp_path: Path) -> None:
    whole = make_backend()
    simulate(lambda: train_supervised(whole, batches=Batches(9), ahead=ahead)).unwrap()
    for cancel_at in range(20, 140, 17):
        path = tmp_path / str(cancel_at)
        first, second = make_backend(), make_backend()

        async def begin(first: SimulatedBackend = first, path: Path = path) -> None:
            await train_supervised(first, batches=Batches(9), ahead=ahead, run=RunSettings(path, checkpoint_every=2))

        async def again(second: SimulatedBackend = second, path: Path = path) -> None:
            settings = RunSettings(path, checkpoint_every=2, resume=True)
            await train_supervised(second, batches=Batches(9), ahead=ahead, run=settings)

        simulate(begin, cancel_at=cancel_at)
        simulate(again).unwrap()
        redone = training_of(second)
        assert redone == {step: data for step, data in training_of(whole).items() if step in redone}
        assert second.version == 9
        assert second._weights == whole._weights


# 12


def test_filter_with_several_tags_attributes_metrics_to_their_own_tag() -> None:
    """Groups of kind 1 are all constant. What kind 0 reports is what it reports where there is no kind 1."""
    result = run(Watched(reward=only_even), Schedule(groups_per_step=4), steps=4)
    assert sum(row["groups/filtered"] for row in result.rows) > 0
    for row in result.rows:
        assert row["env/kind_0/reward/total"] == 0.5  # members 0 and 1
        assert row["env/kind_0/by_group/frac_mixed"] == 1.0
        if "env/kind_1/reward/total" in row:
            assert row["env/kind_1/reward/total"] == 1.0
            assert row["env/kind_1/by_group/frac_all_good"] == 1.0
        kinds = row["env/kind_0/total_episodes"] + row.get("env/kind_1/total_episodes", 0.0)
        assert kinds == row["env/all/total_episodes"]
        assert row.get("env/kind_1/total_episodes", 0.0) == 2 * row["groups/filtered"]


# 13


def test_fail_fast_leaves_no_sibling_running_when_cleanup_runs() -> None:
    """`Watched` notes every call of an env after its cleanup, and every cleanup while one is at work."""
    for seed in seeds(8, 20):
        dataset = Watched(size=4, breaks=lambda problem, where, attempt: where == "step" and problem % 3 == 2)
        backend = small_backend(seed)
        settings = RLSettings(rollout=RolloutSettings(SAMPLING, failure=FailFast()), seed=seed)
        with pytest.raises(ActorsFailed):
            run(dataset, ASYNC, backend=backend, settings=settings, steps=20, seed=seed)
        assert nothing_left(backend, dataset.record) == []


# 14


def test_retrying_group_cancelled_from_outside_leaves_no_child_running() -> None:
    dataset = Watched(size=3, turns=2, breaks=lambda problem, where, attempt: where == "step")
    backend = small_backend()
    cancelled = 0

    async def main(seconds: float) -> None:
        nonlocal cancelled
        snapshot = await backend.snapshot().result()
        policy = Direct(backend, snapshot)
        with anyio.move_on_after(seconds) as scope:
            with pytest.raises(GroupFailed):
                await play_group(dataset[1], policy, RolloutSettings(SAMPLING, failure=Retry(3)), seed=1)
        cancelled += scope.cancelled_caught
        assert nothing_left_of(dataset) == []
        backend.release(snapshot)

    for tenth in range(60):
        simulate(main, tenth / 10).unwrap()
    assert cancelled > 20
    assert nothing_left(backend, dataset.record) == []


def nothing_left_of(dataset: Watched) -> list[str]:
    record = dataset.record
    return [*record.wrong, *["calls go on"] * record.calls, *["not cleaned"] * (record.made != record.cleaned)]


class Direct:
    """A policy that is a backend's snapshot."""

    def __init__(self, backend: SimulatedBackend, snapshot: Any) -> None:
        self.backend, self.snapshot = backend, snapshot

    async def sample(self, request: Any) -> Sequence[Completion]:
        return await self.backend.sample(self.snapshot, request)


# 15


class Table:
    """Where two players meet: each move waits for the other's."""

    def __init__(self) -> None:
        self.moves = [anyio.Event(), anyio.Event()]


class PlayerEnv:
    def __init__(self, table: Table, seat: int, fails: bool) -> None:
        self.table, self.seat, self.fails = table, seat, fails

    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([self.seat, 3]))

    async def step(self, completion: Completion) -> Step:
        if self.fails:
            raise EnvBroke("a player left")
        self.table.moves[self.seat].set()
        await self.table.moves[1 - self.seat].wait()
        return Step(float(self.seat))


class Game(GroupBuilder):
    interdependent = True
    attempts = 0

    def __init__(self, single_turn: bool) -> None:
        self.single_turn = single_turn

    async def make_envs(self) -> Sequence[Env]:
        Game.attempts += 1
        table = Table()
        return [PlayerEnv(table, seat, fails=Game.attempts % 2 == 1 and seat == 1) for seat in range(2)]


@pytest.mark.parametrize("single_turn", [False, True])
def test_two_player_group_of_which_one_fails_is_played_again_as_a_whole(single_turn: bool) -> None:
    Game.attempts = 0
    result = run([Game(single_turn) for _ in range(4)], Schedule(groups_per_step=2), steps=2)
    assert result.ending == "complete"
    assert Game.attempts == 8  # every game was begun twice


# 16


class GradedEnv:
    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool

    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([1, 2]))

    async def step(self, completion: Completion) -> Step:
        try:
            await self.pool.run(burn, 6.0, budget=0.3)
        except BudgetExceeded:
            return Step(-1.0)
        return Step(1.0)


class Graded(GroupBuilder):
    single_turn = True

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool

    async def make_envs(self) -> Sequence[Env]:
        return [GradedEnv(self.pool), GradedEnv(self.pool)]


def test_grading_beyond_its_budget_ends_in_time_and_does_not_block_the_event_loop() -> None:
    async def main() -> None:
        gaps = []
        async with WorkerPool(2) as pool, anyio.create_task_group() as group:
            await pool.run(burn, 0.0)  # workers are up

            async def tick() -> None:
                while True:
                    before = time.perf_counter()
                    await anyio.sleep(0.005)
                    gaps.append(time.perf_counter() - before)

            group.start_soon(tick)
            began = time.perf_counter()
            backend = SimulatedBackend()
            snapshot = await backend.snapshot().result()
            played = await play_group(Graded(pool), Direct(backend, snapshot), RolloutSettings(SAMPLING), seed=0)
            seconds = time.perf_counter() - began
            group.cancel_scope.cancel()
        assert [trajectory.reward for trajectory in played.trajectories] == [-1.0, -1.0]
        assert seconds < 3.0  # 0.3 and a kill, with much room for a busy machine
        # Graded on the loop, the answers would stop it for seconds. The 50 ms bar is measured in tests/runtime/test_processes.py.
        assert len(gaps) > 10
        assert max(gaps) < 1.0

    anyio.run(main, backend="asyncio")


# and beside the sixteen


@pytest.mark.parametrize("concurrency", [1, 3])
def test_evaluation_keeps_its_bound_on_concurrency(concurrency: int) -> None:
    backend = small_backend()
    dataset = Watched(problems=9)
    open_now = []

    class Counting(Watched):
        def __getitem__(self, index: int) -> GroupBuilder:
            open_now.append(dataset.record.made - dataset.record.cleaned)
            return dataset[index]

    evaluation = group_evaluation("held out", Counting(problems=9), RolloutSettings(SAMPLING), concurrency=concurrency)

    async def main() -> Mapping[str, float]:
        snapshot = await backend.snapshot().result()
        try:
            return await evaluation.run(Direct(backend, snapshot))
        finally:
            backend.release(snapshot)

    simulate(main).unwrap()
    assert dataset.record.made == 9
    assert max(open_now) == concurrency - 1  # others that are open while one more begins


def test_batches_problems_and_files_are_read_and_written_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[int]] = {"append": set(), "problem": set(), "batch": set()}
    append = RunDirectory.append

    def noted(self: RunDirectory, name: str, *args: Any, **options: Any) -> None:
        if name == "metrics.jsonl":
            threads["append"].add(threading.get_ident())
        append(self, name, *args, **options)

    monkeypatch.setattr(RunDirectory, "append", noted)

    class Slow:
        blocking = True

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> GroupBuilder:
            threads["problem"].add(threading.get_ident())
            return InstantGroup(index)

    class SlowBatches:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sequence[Datum]:
            threads["batch"].add(threading.get_ident())
            return Batches(2)[index]

    async def main() -> int:
        backend = SimulatedBackend(SamplerModel(), TrainerModel())
        schedule = Schedule(groups_per_step=2)
        settings = RLSettings(rollout=RolloutSettings(SAMPLING))
        await train_rl(
            backend, groups=Slow(), steps=2, schedule=schedule, settings=settings, run=RunSettings(tmp_path / "rl")
        )
        await train_supervised(backend, batches=SlowBatches(), run=RunSettings(tmp_path / "sl"))
        return threading.get_ident()

    loop = anyio.run(main)
    for where in ("append", "problem", "batch"):
        assert threads[where], where
        assert loop not in threads[where], where
