"""Tiny runs that are watched: envs that keep a record and fail on demand, and checks at every step of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import numpy as np
import trio

import actors.rl_actors
from actors import RunResult, Schedule
from engine.backends import Completion, ModelInput
from engine.backends.simulated import LogNormal, SamplerModel, SimulatedBackend, TrainerModel
from engine.runtime import ActorsFailed
from engine.runtime.seeds import derive_seed
from engine.storage.files import read_lines
from engine.training.trajectories import Trajectory
from envs.contracts import Env, GroupBuilder, Observation, Step

MODES = {
    "sync": Schedule(groups_per_step=2),
    "streaming": Schedule(groups_per_step=2, minibatches=2),
    "async": Schedule(groups_per_step=2, max_staleness=1),
    "async-3": Schedule(groups_per_step=3, max_staleness=3, minibatches=2),
    "async-soft": Schedule(groups_per_step=2, max_staleness=1, bound="soft"),
    "async-turn": Schedule(groups_per_step=2, max_staleness=2, pin="turn"),
}


class EnvBroke(Exception):
    """A failure that a test asked for."""


@attrs.define
class Record:
    """What happened to the envs of one run."""

    made: int = 0
    cleaned: int = 0
    calls: int = 0
    """Calls of envs and builders that are going on."""
    wrong: list[str] = attrs.field(factory=list)
    failed_at: list[float] = attrs.field(factory=list)
    """When a failure that was asked for happened."""

    def fail(self, what: str) -> None:
        self.failed_at.append(anyio.current_time())
        raise EnvBroke(what)


Breaks = Callable[[int, str, int], bool | str]
"""Whether the call `where` of a problem's group breaks, the `attempt`-th time its envs are made; "hang": it never returns."""


def never(problem: int, where: str, attempt: int) -> bool:
    return False


Reward = Callable[[int, int, Completion], float]
"""By problem, member and completion."""


def never_constant(problem: int, member: int, completion: Completion) -> float:
    return float(np.sum(completion.tokens % 2 == 0)) + 100.0 * member


@contextmanager
def counted(record: Record) -> Iterator[None]:
    record.calls += 1
    try:
        yield
    finally:
        record.calls -= 1


class WatchedEnv:
    """`turns` questions; the reward counts even tokens. Takes a little time over everything."""

    def __init__(self, group: WatchedGroup, member: int, attempt: int) -> None:
        self.group, self.member, self.attempt = group, member, attempt
        self.turns = group.turns
        self.prompt = ModelInput.from_tokens([1, group.problem, 0 if group.single_turn else member, 2])

    async def _work(self, where: str) -> None:
        group = self.group
        if not group.open:
            group.record.wrong.append(f"{where} of problem {group.problem} after its cleanup, or before make_envs")
        group.live += 1
        try:
            with counted(group.record):
                noise = derive_seed(group.problem, self.member, self.turns, len(where)) % 5
                if noise:
                    await anyio.sleep(noise * 0.03 * group.pace)
                verdict = self.member == group.size - 1 and group.breaks(group.problem, where, self.attempt)
                if verdict == "hang":
                    await anyio.sleep_forever()
                elif verdict:
                    group.record.fail(f"{where} of problem {group.problem}")
        finally:
            group.live -= 1

    async def reset(self) -> Observation:
        await self._work("reset")
        return Observation(self.prompt)

    async def step(self, completion: Completion) -> Step:
        await self._work("step")
        self.turns -= 1
        if self.turns == 0:
            return Step(self.group.reward(self.group.problem, self.member, completion), metrics={"tokens": 1.0})
        self.prompt = self.prompt.append(completion.tokens).append([5, 6])
        return Step(0.0, Observation(self.prompt))


class WatchedGroup(GroupBuilder):
    """Keeps the contract's promises in view: cleanup once for each make_envs, after the last member."""

    def __init__(self, dataset: Watched, problem: int) -> None:
        self.problem, self.size, self.turns = problem, dataset.size, dataset.turns
        self.record, self.breaks, self.reward = dataset.record, dataset.breaks, dataset.reward
        self.single_turn, self.pace = dataset.single_turn, dataset.pace
        self.tags = (f"kind_{problem % 2}",)
        self.attempts = 0
        self.open = False
        self.live = 0

    async def make_envs(self) -> Sequence[Env]:
        self.attempts += 1
        if self.open:
            self.record.wrong.append(f"make_envs of problem {self.problem} before the cleanup of the last one")
        self.record.made += 1
        self.open = True
        with counted(self.record):
            await anyio.sleep(0.01 * self.pace)
            if self.breaks(self.problem, "make_envs", self.attempts):
                self.record.fail(f"make_envs of problem {self.problem}")
        return [WatchedEnv(self, member, self.attempts) for member in range(self.size)]

    async def group_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[float] | None:
        if self.live:
            self.record.wrong.append(f"group_rewards of problem {self.problem} while {self.live} members are at work")
        with counted(self.record):
            await anyio.sleep(0.01 * self.pace)
            if self.breaks(self.problem, "group_rewards", self.attempts):
                self.record.fail(f"group_rewards of problem {self.problem}")
        return None

    async def cleanup(self) -> None:
        if not self.open or self.live:
            self.record.wrong.append(
                f"cleanup of problem {self.problem}: open {self.open}, members at work {self.live}"
            )
        with counted(self.record):
            await anyio.sleep(0.02 * self.pace)
            self.record.cleaned += 1
            self.open = False
            if self.breaks(self.problem, "cleanup", self.attempts):
                self.record.fail(f"cleanup of problem {self.problem}")


@attrs.define
class Watched:
    """A dataset of watched groups."""

    problems: int = 16
    size: int = 2
    turns: int = 1
    single_turn: bool = False
    breaks: Breaks = never
    reward: Reward = never_constant
    pace: float = 1.0
    """0: nothing takes time, for event loops whose clock is real."""
    record: Record = attrs.field(factory=Record)

    def __len__(self) -> int:
        return self.problems

    def __getitem__(self, index: int) -> GroupBuilder:
        return WatchedGroup(self, index)


class Accountant(trio.abc.Instrument):
    """Checks the books of every RL run at every step of the scheduler."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.checks = 0
        self.wrong: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        for run in self.runs:
            self.checks += 1
            books = run.gate.statistics()
            if books.admitted != books.trained + books.filtered + books.failed + books.unsettled:
                self.wrong.append(f"the accounts do not balance: {books}")
            if books.unsettled > run.gate.capacity:
                self.wrong.append(f"more under way than there may be: {books}")
            if run.source.position != books.admitted:
                self.wrong.append(f"position {run.source.position} with {books.admitted} admitted")
            unplayed = set(run._under_way.assignments)
            waiting = {ticket.number for ticket in run.feed._pool}
            taken = {ticket.number for ticket in run.gate._taken}
            scored = set(run._under_way.played)
            known = len(unplayed) + len(scored) + len(waiting) + len(taken)
            if known != books.unsettled or len(unplayed | scored | waiting | taken) != known:
                self.wrong.append(
                    f"unsettled {books.unsettled}: not played {unplayed}, scored {scored}, waiting {waiting}, {taken}"
                )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Watches every RL run that is made within the block."""
        made = actors.rl_actors.RLActors.__init__

        def init(run: Any, *args: Any, **options: Any) -> None:
            made(run, *args, **options)
            self.runs.append(run)

        actors.rl_actors.RLActors.__init__ = init  # type: ignore[method-assign]
        try:
            yield
        finally:
            actors.rl_actors.RLActors.__init__ = made  # type: ignore[method-assign]


def small_backend(seed: int = 0, **options: Any) -> SimulatedBackend:
    """Long tails, quick to simulate."""
    options.setdefault("record", True)
    sampler = SamplerModel(seconds=LogNormal(mean=0.5, sigma=1.0, maximum=10.0), sec_per_token=0.1)
    trainer = TrainerModel(per_call=0.1, per_datum=0.01, optim_step=0.05, snapshot=0.05, save=0.3)
    return SimulatedBackend(sampler, trainer, seed=seed, **options)


def nothing_left(backend: SimulatedBackend, record: Record) -> list[str]:
    """What a run must not leave behind, whatever happened to it."""
    left = list(record.wrong)
    if record.made != record.cleaned:
        left.append(f"{record.made} groups made, {record.cleaned} cleaned up")
    if record.calls:
        left.append(f"{record.calls} calls of envs go on")
    if backend.requests_in_flight:
        left.append(f"{backend.requests_in_flight} requests in flight")
    if backend.live_snapshots:
        left.append(f"snapshots alive: {[snapshot.version for snapshot in backend.live_snapshots]}")
    return left


def names_of(error: ActorsFailed) -> list[str]:
    """The actors that the notes name, one for each error."""
    return [note for each in error.exceptions for note in each.__notes__ if note.startswith("in actor")]


def check_complete(result: RunResult, backend: SimulatedBackend, schedule: Schedule, steps: int) -> None:
    """A run that came to its end trained what it should, each group once, within the bound."""
    assert result.ending == "complete"
    assert result.version == backend.version == steps
    assert [row["step"] for row in result.rows] == list(range(steps))
    assert all(row["groups/trained"] == schedule.groups_per_step for row in result.rows)
    assert result.gate is not None
    assert result.gate.unsettled == 0
    assert result.gate.trained == steps * schedule.groups_per_step
    if schedule.bound == "hard":
        assert max(row["staleness/max"] for row in result.rows) <= schedule.max_staleness
    assert backend.log is not None
    trained = [digest for step in range(steps) for digest in backend.log.trained(step)]
    assert len(set(trained)) == len(trained) == sum(row["optim/datums"] for row in result.rows)
    calls = [entry.call for entry in backend.log.training]
    assert calls.count("optim_step") == steps


def training_of(backend: SimulatedBackend) -> dict[int, tuple[Any, ...]]:
    """What each step trained on: digests of its datums in order, by version."""
    assert backend.log is not None
    return {
        entry.version: backend.log.trained(entry.version)
        for entry in backend.log.training
        if entry.call == "optim_step"
    }


def check_directory(path: Path, steps: int, groups_per_step: int) -> None:
    """The files of a complete run, however often it was resumed: no step missing or twice, no ticket trained twice."""
    assert [row["step"] for row in read_lines(path / "metrics.jsonl")] == list(range(steps))
    samples = [row["step"] for row in read_lines(path / "samples.jsonl")]
    assert samples == sorted(samples)
    assert set(samples) == set(range(steps))
    trained: dict[int, list[int]] = {}
    for event in read_lines(path / "events.jsonl"):
        if event["event"] == "trained":
            trained.setdefault(event["step"], []).append(event["ticket"])
    last = {step: tickets[-groups_per_step:] for step, tickets in trained.items()}  # done again after a resume
    assert sorted(last) == list(range(steps))
    tickets = [ticket for step in range(steps) for ticket in last[step]]
    assert len(set(tickets)) == len(tickets) == steps * groups_per_step
    listed = {row["step"] for row in read_lines(path / "checkpoints.jsonl")}
    assert {directory.name for directory in path.glob("checkpoints/*")} <= {f"{step:06d}" for step in listed}
