"""Whole runs on the backend: reinforcement learning under many schedules with faults, a server that dies, and what a resumed run finds.

On the virtual clock; the service trains a table with real gradients.
"""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np
import pytest

from actors import RLSettings, RunResult, RunSettings, Schedule, train_rl, train_supervised
from engine.backends import AdamParams, Completion, Datum, ModelInput, SamplingParams
from engine.backends.tinker.states import saved_in
from engine.backends.tinker.testing import FakeTinker, Fault, values
from engine.runtime import ActorsFailed, simulate
from engine.runtime.testing import schedules
from engine.storage.blobs import FsspecBlobs, open_blobs
from engine.storage.discarded import noted
from engine.storage.mirror import INDEX, pull_run
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings
from tests.actors.test_mirror import Notes


class Low:
    """The reward is the share of token ids below 4, of 16: a quarter at first."""

    def __init__(self, problem: int) -> None:
        self._problem = problem

    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([8 + self._problem]))

    async def step(self, completion: Completion) -> Step:
        return Step(reward=float(np.mean(completion.tokens < 4)))


@attrs.frozen
class LowGroup(GroupBuilder):
    problem: int

    async def make_envs(self) -> Sequence[Env]:
        return [Low(self.problem) for _ in range(8)]


def lesson(step: int) -> Datum:
    tokens = np.arange(step % 5, step % 5 + 6)
    return Datum(ModelInput.from_tokens(tokens[:-1]), {"target_tokens": tokens[1:], "weights": np.ones(5, np.float32)})


REWARD = "env/all/reward/total"
PROBLEMS = [LowGroup(problem) for problem in range(6)]


async def learn(
    fake: FakeTinker,
    schedule: Schedule,
    steps: int,
    run: RunSettings | None = None,
    observers: Sequence[Any] = (),
    **options: Any,
) -> RunResult:
    settings = RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=6)), optimizer=AdamParams(0.3), seed=1, epochs=None
    )
    async with fake.open(**options) as backend:
        return await train_rl(
            backend, groups=PROBLEMS, steps=steps, schedule=schedule, settings=settings, run=run, observers=observers
        )


def latencies(seed: int) -> Any:
    stream = random.Random(seed)
    return lambda call: stream.lognormvariate(0, 1) if call == "sample" else stream.uniform(0, 0.3)


@pytest.mark.parametrize("shared_slot", [False, True], ids=["hosted", "skyrl"])
@pytest.mark.parametrize(
    "schedule",
    [Schedule(groups_per_step=4), Schedule(groups_per_step=4, minibatches=2, max_staleness=2)],
    ids=["sync", "async"],
)
def test_it_learns_and_staleness_holds_under_any_schedule(schedule: Schedule, shared_slot: bool) -> None:
    """Also where sampling from an older snapshot would otherwise undo what was trained since."""
    rewards = []
    for seed in range(2):
        fake = FakeTinker("0.38" if seed % 2 else "0.25", vocab=16, latency=latencies(seed), shared_slot=shared_slot)
        stream = random.Random(seed)
        fake.service.plan(
            "sample",
            *[Fault(error=values.RateLimitError("later")) if stream.random() < 0.1 else None for _ in range(200)],
        )
        result = simulate(learn, fake, schedule, 12, seed=seed).unwrap()
        assert result.version == 12
        assert max(row["staleness/max"] for row in result.rows) <= schedule.max_staleness
        rewards.append((result.rows[0][REWARD], result.rows[-1][REWARD]))
        assert fake.service.checkpoints == {}
    assert np.mean([last for _, last in rewards]) > np.mean([first for first, _ in rewards]) + 0.15


def test_the_same_seed_gives_the_same_run() -> None:
    rows = []
    for _ in range(2):
        fake = FakeTinker(vocab=16, latency=latencies(5))
        result = simulate(learn, fake, Schedule(groups_per_step=4, max_staleness=1), 4, seed=3).unwrap()
        rows.append(list(result.rows))
    assert rows[0] == rows[1]


def test_cancelled_anywhere_nothing_is_left() -> None:
    """The backend closes, the session is ended, and no request waits for an answer that nobody wants."""
    for seed in range(2):
        fakes: list[FakeTinker] = []

        async def main(fakes: list[FakeTinker] = fakes, seed: int = seed) -> RunResult:
            fakes.append(FakeTinker(vocab=16, latency=latencies(seed)))
            return await learn(fakes[-1], Schedule(groups_per_step=3, max_staleness=1), 2)

        whole = simulate(main, seed=seed)
        for step in range(5, whole.steps, max(1, whole.steps // 8)):
            report = simulate(main, seed=seed, cancel_at=step)
            assert report.cancelled or report.error is None, report.error
            assert len(fakes[-1].service.sessions) <= 1


@pytest.mark.parametrize("shared_slot", [False, True], ids=["hosted", "skyrl"])
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_dead_server_ends_the_run_and_a_restart_resumes_it(
    max_staleness: int, shared_slot: bool, tmp_path: Path
) -> None:
    schedule = Schedule(groups_per_step=3, max_staleness=max_staleness)
    run = RunSettings(tmp_path, checkpoint_every=2)
    fake = FakeTinker(vocab=16, latency=latencies(1), shared_slot=shared_slot)

    async def dies() -> float:
        async def die() -> None:
            while sum(call == "optim_step" for call, _ in fake.service.log) < 5:  # noqa: ASYNC110  (virtual time)
                await anyio.sleep(0.1)
            fake.service.down = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die)
            began = anyio.current_time()
            with pytest.raises(ActorsFailed) as failed:
                await learn(fake, schedule, 8, run, attempts=1)
            assert "out of reach" in str(failed.value.exceptions[0])
            return anyio.current_time() - began

    assert simulate(dies, seed=1).unwrap() < 400
    fake.service.down = False
    for each in fake.service.runs.values():
        each.unloaded = True  # a restarted server has its checkpoints, and no runs
    result = simulate(learn, fake, schedule, 8, attrs.evolve(run, resume=True), seed=2).unwrap()
    assert result.version == 8
    assert [row["step"] for row in result.rows] == list(range(8))
    assert max(row["staleness/max"] for row in result.rows) <= max_staleness


def test_many_interleavings() -> None:
    async def main() -> RunResult:
        return await learn(FakeTinker(vocab=16, latency=latencies(0)), Schedule(groups_per_step=2, max_staleness=1), 2)

    for report in schedules(main, count=8):
        assert max(row["staleness/max"] for row in report.unwrap().rows) <= 1


# ---- what deleted checkpoints leave on the server --------------------------------------------------------------------------------------


async def supervise(fake: FakeTinker, steps: int, settings: RunSettings, *observers: Any) -> None:
    async with fake.open() as backend:
        await train_supervised(
            backend, batches=[[lesson(step)] for step in range(10)], steps=steps, run=settings, observers=observers
        )


def held(run: Path) -> set[str]:
    return {state.path for _, state in saved_in(run)}


def left(run: Path) -> set[str]:
    return {remote.path for remote in noted(run)}


@pytest.mark.parametrize("shared_slot", [False, True], ids=["hosted", "skyrl"])
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_pruned_checkpoints_are_deleted_on_the_server(max_staleness: int, shared_slot: bool, tmp_path: Path) -> None:
    """With every checkpoint that goes, and none that is held or sampled from: older snapshots are in several checkpoints."""
    schedule = Schedule(groups_per_step=3, max_staleness=max_staleness)
    run = RunSettings(tmp_path, checkpoint_every=1, keep_checkpoints=2)
    fake = FakeTinker(vocab=16, latency=latencies(1), shared_slot=shared_slot)
    assert simulate(learn, fake, schedule, 8, run, seed=1).unwrap().version == 8
    assert sum(call == "delete" for call, _ in fake.service.log) >= 6
    assert set(fake.service.checkpoints) == held(tmp_path) | left(tmp_path)
    assert max_staleness or not left(tmp_path)
    resumed = attrs.evolve(run, resume=True)
    assert simulate(learn, fake, schedule, 12, resumed, seed=2).unwrap().version == 12
    assert set(fake.service.checkpoints) == held(tmp_path) | left(tmp_path)


@pytest.mark.parametrize("line", ["0.25", "0.38"])
def test_what_the_server_does_not_delete_stays_noted_and_is_asked_for_again(line: Any, tmp_path: Path) -> None:
    run = RunSettings(tmp_path, checkpoint_every=1, keep_checkpoints=1)
    fake = FakeTinker(line, vocab=16)
    broken = Fault(error=values.InternalServerError("out of order"))
    fake.service.plan("delete", broken, broken, broken, None)  # the last one is of a snapshot, when the run is over
    notes = Notes()

    simulate(supervise, fake, 3, run, notes).unwrap()
    assert (len(left(tmp_path)), len(held(tmp_path))) == (2, 1)
    assert set(fake.service.checkpoints) == held(tmp_path) | left(tmp_path)
    told = [note for note in notes.notes if "still on the server" in note]
    assert [note.split(" ")[0] for note in told] == ["1", "2"]
    assert all("out of order; status 500" in note and "discarded.jsonl" in note for note in told)

    first, *_ = sorted(left(tmp_path))
    fake.service.plan("delete", Fault(lost=True), Fault(error=values.NotFoundError("expired")))
    simulate(supervise, fake, 6, attrs.evolve(run, resume=True), notes).unwrap()
    told = [note for note in notes.notes if "still on the server" in note]
    assert len(told) == 3
    assert "3 of the weights" in told[-1]
    assert "no answer within 30 s" in told[-1]
    assert not (tmp_path / "discarded.jsonl").exists()
    assert set(fake.service.checkpoints) == held(tmp_path) | {first}  # of which it said that it had expired


def test_what_a_copy_of_the_run_names_is_not_deleted(tmp_path: Path) -> None:
    """At no moment: a machine that is lost leaves a copy whose weights are there."""
    fake = FakeTinker(vocab=16)
    looked = []

    class Blobs(FsspecBlobs):
        refuse = False

        def upload(self, name: str, source: Path) -> None:
            if self.refuse:
                raise PermissionError("the bucket is somebody else's")
            super().upload(name, source)

        def write(self, name: str, content: bytes) -> None:
            if name == INDEX and INDEX in self.names():  # the copy as it was since the last push
                old = tmp_path / f"old{len(looked)}"
                pull_run(self, old)
                looked.append(held(old))
                assert looked[-1] <= set(fake.service.checkpoints)
            super().write(name, content)

    memory = open_blobs(f"memory://{uuid.uuid4()}")
    blobs = Blobs(memory._filesystem, memory._root, memory.address)
    run = RunSettings(tmp_path / "run", checkpoint_every=1, keep_checkpoints=1, mirror=blobs)
    simulate(supervise, fake, 4, run).unwrap()
    assert len(looked) >= 3
    assert set(fake.service.checkpoints) == held(tmp_path / "run")
    Blobs.refuse = True
    simulate(supervise, fake, 6, attrs.evolve(run, resume=True)).unwrap()
    assert set(fake.service.checkpoints) == held(tmp_path / "run") | left(tmp_path / "run")
    assert len(left(tmp_path / "run")) == 2
    Blobs.refuse = False
    simulate(supervise, fake, 7, attrs.evolve(run, resume=True)).unwrap()
    assert set(fake.service.checkpoints) == held(tmp_path / "run")


def test_a_resume_falls_back_where_an_older_snapshot_has_expired(tmp_path: Path) -> None:
    """Of a checkpoint that holds snapshots, too, each lies on the server by itself."""
    fake = FakeTinker(vocab=16, latency=latencies(1))
    run = RunSettings(tmp_path, checkpoint_every=1, keep_checkpoints=None)
    schedule = Schedule(groups_per_step=3, max_staleness=2)
    simulate(learn, fake, schedule, 4, run, seed=1).unwrap()
    checkpoint, state = next(
        (place.parents[1], state)
        for place, state in reversed(list(saved_in(tmp_path / "checkpoints")))
        if place.parent.name == "snapshots"
    )
    del fake.service.checkpoints[state.path]
    for later in (tmp_path / "checkpoints").iterdir():
        if later.name > checkpoint.name:
            shutil.rmtree(later)
    notes = Notes()
    resumed = attrs.evolve(run, resume=True)

    async def resume() -> RunResult:
        return await learn(fake, schedule, 5, resumed, observers=[notes])

    assert simulate(resume, seed=2).unwrap().version == 5
    assert any(f"checkpoint {int(checkpoint.name)} cannot be used" in note for note in notes.notes), notes.notes
