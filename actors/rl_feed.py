"""Reinforcement learning's feed: finished groups in, minibatches of datums out.

    consumes: finished groups             produces: datums, credits
    waits for: groups that may be taken   unblocked by: a group that finishes

The gate decides which finished group a step may take; the shaper makes datums of it. Where that is a group's own business ("group" scope), a minibatch is
complete as soon as its groups are; where it needs the whole step ("step" scope), all groups are awaited before the first minibatch is cut.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import fmean

import anyio
import anyio.lowlevel
import attrs

from actors.reports import StepReport
from actors.schedule import Schedule
from actors.shaping import PORTION, Shaper, turns_of
from actors.work import FinishedGroup, Journal, RolloutLedger, UnderWay
from engine.backends.values import Datum, ForwardBackwardResult, Logprobs
from engine.runtime.channels import Receiver
from engine.runtime.gate import StalenessGate, Ticket
from engine.training.metrics import StepSums
from envs.rollout import is_constant


class GroupFeed:
    """Takes finished groups by the gate's leave, and turns them into datums."""

    def __init__(
        self,
        finished: Receiver[FinishedGroup],
        gate: StalenessGate,
        schedule: Schedule,
        shaper: Shaper,
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
        self._shaper = shaper
        self._under_way = under_way
        self._ledger = ledger
        self._journal = journal
        self._samples_per_step = samples_per_step
        self._pool: dict[Ticket, FinishedGroup] = {}
        self._step: list[FinishedGroup] = []
        self._held: list[list[Datum]] = []
        self._ended = False
        self._waited = 0.0
        for group in kept:
            self._offer(group)

    @property
    def minibatches(self) -> int:
        return self._schedule.minibatches

    async def next_minibatch(self, part: int) -> list[Datum]:
        """Datums of the step's `part`-th minibatch, its groups in the order of admission; empty when no groups are left."""
        if self._shaper.scope == "group":
            groups = await self._take(self._sizes[part])
            (minibatch,) = await self._shaper.shape(groups, [len(groups)])
            return minibatch
        if part == 0:
            groups = await self._take(self._schedule.groups_per_step)
            self._held = await self._shaper.shape(groups, self._sizes)
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
            self._gate.version,
            groups,
            self._ledger.take(),
            self._journal,
            self._samples_per_step,
            anyio.current_time(),
            self._shaper.metrics(),
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
    shaped: Mapping[str, float]
    """What was found while the datums were made."""

    async def report(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> StepReport:
        """The step's metrics, in portions."""
        turns = 0
        for finished in self.groups:
            turns += turns_of(finished)
            if turns > PORTION:
                await anyio.lowlevel.checkpoint()
                turns = 0
            self.ledger.add(finished.group)
            self.journal.note("trained", finished.ticket.number, self.at, step=self.step)
        row = self.ledger.metrics()
        row.update(_staleness(self.step, self.groups))
        row["groups/trained"] = float(len(self.groups))
        row["groups/constant"] = float(sum(is_constant(finished.group) for finished in self.groups))
        row["tokens/trained"] = float(sum(finished.group.sampled_tokens for finished in self.groups))
        row["optim/datums"] = float(len(data))
        row["optim/loss"] = sum(result.loss for result in results)
        row.update(self.shaped)
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


def _staleness(step: int, groups: Sequence[FinishedGroup]) -> dict[str, float]:
    """Optimizer steps between a group's oldest tokens and its training: while it was played, and while it waited to be trained."""
    if not groups:
        return {}
    oldest = [min(t.oldest_version for t in finished.group.trajectories if t.turns) for finished in groups]
    newest = [
        max(turn.completion.version for t in finished.group.trajectories for turn in t.turns) for finished in groups
    ]
    totals = [step - version for version in oldest]
    in_flight = [finished.finished_version - version for finished, version in zip(groups, oldest, strict=True)]
    in_queue = [step - finished.finished_version for finished in groups]
    return {
        "staleness/mean": fmean(totals),
        "staleness/max": float(max(totals)),
        "staleness/in_flight_mean": fmean(in_flight),
        "staleness/in_flight_max": float(max(in_flight)),
        "staleness/in_queue_mean": fmean(in_queue),
        "staleness/in_queue_max": float(max(in_queue)),
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
