"""Reinforcement learning's feed: finished groups in, minibatches of datums out.

    consumes: finished groups             produces: datums, credits
    waits for: groups that may be taken   unblocked by: a group that finishes

The gate decides which finished group a step may take. Advantages are a group's own business ("group" scope), and then a minibatch is
complete as soon as its groups are; or they need the whole step ("step" scope), and then all groups are awaited before the first
minibatch is cut. Either way the gradient of a step does not depend on the number of minibatches.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean

import anyio
import anyio.lowlevel
import attrs
import numpy as np

from actors.reports import StepReport
from actors.schedule import Schedule
from actors.work import FinishedGroup, Journal, RolloutLedger, UnderWay
from engine.backends.values import Datum, ForwardBackwardResult, Logprobs
from engine.runtime.channels import Receiver
from engine.runtime.gate import StalenessGate, Ticket
from engine.training.advantages import Advantage
from engine.training.assembly import assemble
from engine.training.metrics import StepSums

PORTION = 256
"""Turns of episodes assembled or counted before other tasks get their turn: a big step must not hold up the rollouts."""


class GroupFeed:
    """Takes finished groups by the gate's leave, and turns them into datums."""

    def __init__(
        self,
        finished: Receiver[FinishedGroup],
        gate: StalenessGate,
        schedule: Schedule,
        advantage: Advantage,
        *,
        under_way: UnderWay,
        ledger: RolloutLedger,
        journal: Journal,
        kept: Sequence[FinishedGroup] = (),
        samples_per_step: int = 1,
    ) -> None:
        """`kept`: finished groups of a restored checkpoint, whose tickets the gate holds as outstanding."""
        self._finished = finished
        self._gate = gate
        self._schedule = schedule
        self._sizes = schedule.minibatch_sizes()
        self._advantage = advantage
        self._under_way = under_way
        self._ledger = ledger
        self._journal = journal
        self._samples_per_step = samples_per_step
        self._pool: dict[Ticket, FinishedGroup] = {}
        self._step: list[FinishedGroup] = []
        self._held: list[list[FinishedGroup]] = []
        self._step_advantages: dict[Ticket, np.ndarray] = {}
        self._ended = False
        self._waited = 0.0
        for group in kept:
            self._offer(group)

    @property
    def minibatches(self) -> int:
        return self._schedule.minibatches

    async def next_minibatch(self, part: int) -> list[Datum]:
        """Datums of the step's `part`-th minibatch, its groups in the order of admission; empty when no groups are left."""
        if self._advantage.scope == "step":
            groups = await self._part_of_whole_step(part)
        else:
            groups = await self._take(self._sizes[part])
        data: list[Datum] = []
        turns = PORTION if part else 0  # what the parts before took
        for finished in groups:
            turns += _turns(finished)
            if turns > PORTION:
                await anyio.lowlevel.checkpoint()
                turns = 0
            advantages = self._step_advantages.pop(finished.ticket, None)
            if advantages is None:
                advantages = self._advantage([finished.group])[0]
            data.extend(assemble(finished.group, advantages))
        return data

    async def _part_of_whole_step(self, part: int) -> list[FinishedGroup]:
        if part == 0:
            groups = await self._take(self._schedule.groups_per_step)
            advantages = self._advantage([finished.group for finished in groups])
            self._step_advantages = {
                finished.ticket: values for finished, values in zip(groups, advantages, strict=True)
            }
            self._held = []
            start = 0
            for size in self._sizes:
                self._held.append(groups[start : start + size])
                start += size
        return self._held[part]

    async def _take(self, count: int) -> list[FinishedGroup]:
        """Waits for `count` groups that may be trained now; fewer only when there will be no more."""
        taken: list[FinishedGroup] = []
        while len(taken) < count:
            self._drain()
            ticket = self._gate.take()
            if ticket is not None:
                taken.append(self._pool.pop(ticket))
                continue
            if self._ended:
                break
            began = anyio.current_time()
            try:
                await self._wait()
            finally:
                self._waited += anyio.current_time() - began
        taken.sort(key=lambda finished: finished.ticket)
        self._step.extend(taken)
        return taken

    async def _wait(self) -> None:
        """Waits for another finished group; where some are finished and must let another go first, also for that one's being given back."""
        if not self._pool:
            await self._receive()
            return
        change = self._gate.next_change  # of now: one that comes before the tasks run counts too
        async with anyio.create_task_group() as either:

            async def until(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                either.cancel_scope.cancel()

            either.start_soon(until, change.wait)
            either.start_soon(until, self._receive)

    async def _receive(self) -> None:
        try:
            self._accept(await self._finished.receive())
        except anyio.EndOfStream:
            self._ended = True

    def _drain(self) -> None:
        """Everything that has finished by now, so that the gate chooses among all of it."""
        try:
            while not self._ended:
                self._accept(self._finished.receive_nowait())
        except anyio.WouldBlock:
            pass
        except anyio.EndOfStream:
            self._ended = True

    def _accept(self, group: FinishedGroup) -> None:
        self._under_way.remove(group.ticket)
        self._offer(group)

    def _offer(self, group: FinishedGroup) -> None:
        self._pool[group.ticket] = group
        self._gate.ready(group.ticket)

    def settle(self) -> SettledGroups:
        """Settles the step's groups: credits go back, the version rises."""
        groups, self._step = self._step, []
        settled = SettledGroups(
            self._gate.version, groups, self._ledger.take(), self._journal, self._samples_per_step, anyio.current_time()
        )
        self._gate.advance()
        return settled

    @property
    def waited(self) -> float:
        """Seconds spent waiting for groups, so far."""
        return self._waited

    def kept(self) -> tuple[FinishedGroup, ...]:
        """At a step boundary: the groups that are played and not trained."""
        self._drain()
        return tuple(self._pool[ticket] for ticket in sorted(self._pool))


@attrs.frozen
class SettledGroups:
    """The groups of a trained step, with what was filtered and failed meanwhile."""

    step: int
    groups: Sequence[FinishedGroup]
    ledger: RolloutLedger
    journal: Journal
    samples: int
    at: float

    async def report(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> StepReport:
        """The step's metrics, in portions."""
        turns = 0
        for finished in self.groups:
            turns += _turns(finished)
            if turns > PORTION:
                await anyio.lowlevel.checkpoint()
                turns = 0
            self.ledger.add(finished.group)
            self.journal.note("trained", finished.ticket.number, self.at, step=self.step)
        row = self.ledger.metrics()
        row.update(_staleness(self.step, self.groups))
        row["groups/trained"] = float(len(self.groups))
        row["tokens/trained"] = float(sum(finished.group.sampled_tokens for finished in self.groups))
        row["optim/datums"] = float(len(data))
        row["optim/loss"] = sum(result.loss for result in results)
        row.update(await self._mismatch(data, [logprobs for result in results for logprobs in result.logprobs]))
        samples = [sample for finished in self.groups[: self.samples] for sample in _readable(self.step, finished)]
        return StepReport(row, self.journal.drain(), samples)

    @staticmethod
    async def _mismatch(data: Sequence[Datum], logprobs: Sequence[Logprobs]) -> dict[str, float]:
        sums = StepSums()
        portion = PORTION // 4  # a datum may hold several turns
        for start in range(0, len(data), portion):
            sums.add(data[start : start + portion], logprobs[start : start + portion])
            await anyio.lowlevel.checkpoint()
        return sums.metrics()


def _turns(finished: FinishedGroup) -> int:
    return sum(len(trajectory.turns) for trajectory in finished.group.trajectories)


def _staleness(step: int, groups: Sequence[FinishedGroup]) -> dict[str, float]:
    """Optimizer steps between a group's oldest tokens and its training: while it was played, and while it waited to be trained."""
    if not groups:
        return {}
    oldest = [min(t.oldest_version for t in finished.group.trajectories if t.turns) for finished in groups]
    newest = [
        max(turn.completion.version for t in finished.group.trajectories for turn in t.turns) for finished in groups
    ]
    totals = [step - version for version in oldest]
    return {
        "staleness/mean": fmean(totals),
        "staleness/max": float(max(totals)),
        "staleness/in_flight_mean": fmean(
            finished.finished_version - version for finished, version in zip(groups, oldest, strict=True)
        ),
        "staleness/in_queue_mean": fmean(step - finished.finished_version for finished in groups),
        "staleness/version_span_max": float(max(new - old for new, old in zip(newest, oldest, strict=True))),
    }


def _readable(step: int, finished: FinishedGroup) -> list[dict[str, object]]:
    return [
        {
            "step": step,
            "ticket": finished.ticket.number,
            "tags": list(finished.group.tags),
            "member": member,
            "reward": trajectory.reward,
            "end": trajectory.end,
            "turns": [{**turn.logs, "reward": turn.reward} for turn in trajectory.turns],
        }
        for member, trajectory in enumerate(finished.group.trajectories[:4])
    ]
