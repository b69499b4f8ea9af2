"""The staleness gate: who may start, and which finished work may be consumed next.

Work is admitted at a version (how many steps were behind the weights then) and consumed by a later step. The *staleness* of work consumed in step s
is s minus the version at its admission. Two rules keep it at or below `max_staleness` = η with groups_per_step = B:

- **Pace.** At most (η+1)·B tickets are admitted and not yet settled.
- **Earliest deadline.** A ticket admitted at version v is due by step v+η. Finished work is consumed in any order as long as every other
  outstanding ticket can still meet its deadline: for each t, at most t·B − (already taken for the current step) of the tickets not yet taken may be
  due within t steps. Only when the places up to some deadline are all spoken for does the gate wait for a ticket due by then.

Why both are needed: credits alone do not bound staleness, because a straggler outlives them; consuming in the order of admission would, but waits
for the oldest ticket every time. Nothing admitted is ever discarded.

Why they are exact: places up to a deadline only run out through `take` (admission adds the latest deadline there is, and the pace is that
deadline's own condition), so a ticket may be taken if and only if all others still have an assignment of places to meet their deadlines. And of the
finished tickets the earliest due is the one whose taking asks least of the others: if it must wait, all must.

`bound="soft"` keeps the pace and drops the deadlines (the rule of AReaL, arXiv 2505.24298): the mean stays near η, a straggler may exceed it.

The core is synchronous; only `admit` waits.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Literal

import anyio
import anyio.lowlevel
import attrs

from engine.runtime.waiting import WaitingTime

Bound = Literal["hard", "soft"]


@attrs.frozen(order=True)
class Ticket:
    """Leave to produce one piece of work."""

    number: int
    """Unique within the run, in the order of admission."""
    version: int
    """Steps behind the weights at admission."""


@attrs.frozen
class GateStatistics:
    """The gate's record: admitted = trained + filtered + failed + unsettled, at every instant."""

    version: int
    admitted: int
    trained: int
    filtered: int
    failed: int
    unsettled: int
    ready: int
    taken: int
    admit_blocked: float
    """Seconds during which admission waited for a credit, a wait that goes on included."""


class GateClosed(Exception):
    """No more work will be admitted."""


@attrs.frozen
class GateState:
    """What a checkpoint keeps of a gate, at a step boundary (nothing taken)."""

    version: int
    next_number: int
    """Number of the next ticket, which is how many were admitted."""
    trained: int
    filtered: int
    failed: int
    outstanding: tuple[Ticket, ...]

    def __attrs_post_init__(self) -> None:
        accounted = self.trained + self.filtered + self.failed + len(self.outstanding)
        if accounted != self.next_number:
            raise ValueError(
                f"a gate's state accounts for {accounted} tickets ({self.trained} trained, {self.filtered} filtered, {self.failed} failed, "
                f"{len(self.outstanding)} outstanding), but {self.next_number} were admitted"
            )


class StalenessGate:
    """Admission and consumption under a staleness bound. See the module's text for the rules."""

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        bound: Bound = "hard",
        total: int | None = None,
        state: GateState | None = None,
    ) -> None:
        """`total`: how many tickets are to be trained in all (those of a restored `state` included); None: no limit.

        A restored gate holds the state's outstanding tickets: each is admitted already, and waits for `ready` or `settle`. Raises ValueError
        when they cannot all be trained under these settings.
        """
        if groups_per_step < 1:
            raise ValueError(f"groups_per_step must be at least 1, got {groups_per_step}")
        if max_staleness < 0:
            raise ValueError(f"max_staleness must be 0 or more, got {max_staleness}")
        if bound not in ("hard", "soft"):
            raise ValueError(f"bound must be 'hard' or 'soft', got {bound!r}")
        if total is not None and total < 0:
            raise ValueError(f"total must be 0 or more, got {total}")
        self.groups_per_step = groups_per_step
        self.max_staleness = max_staleness
        self.bound = bound
        self.total = total
        state = state or GateState(0, 0, 0, 0, 0, ())
        self.version = state.version
        self._next_number = state.next_number
        self._settled: Counter[str] = Counter(trained=state.trained, filtered=state.filtered, failed=state.failed)
        self._outstanding: set[Ticket] = set(state.outstanding)
        """Admitted, neither taken nor settled."""
        self._ready: list[tuple[int, int, Ticket]] = []
        """Heap by (due, number)."""
        self._ready_set: set[Ticket] = set()
        self._taken: set[Ticket] = set()
        self._due: Counter[int] = Counter(self.due(ticket) for ticket in self._outstanding)
        self._closed = False
        self._change = anyio.Event()
        self._admit_waiting = WaitingTime()
        self._check_restored()

    def _check_restored(self) -> None:
        if self.total is not None and self._settled["trained"] + len(self._outstanding) > self.total:
            raise ValueError(
                f"{self._settled['trained']} tickets are trained and {len(self._outstanding)} under way already: a total of {self.total} is too "
                f"small for them all"
            )
        if self.bound == "hard" and (late := self._first_late(self.version)) is not None:
            raise ValueError(
                f"too many tickets are due by step {late} to be trained by then, {self.groups_per_step} a step from step {self.version} on: "
                f"they were admitted under a larger max_staleness than {self.max_staleness}, or more groups per step; restore with those, "
                f"or with the soft bound"
            )

    @property
    def capacity(self) -> int:
        """Most tickets that can be unsettled at once."""
        return (self.max_staleness + 1) * self.groups_per_step

    @property
    def unsettled(self) -> int:
        """Tickets admitted and neither trained, filtered nor failed."""
        return len(self._outstanding) + len(self._taken)

    @property
    def step_size(self) -> int:
        """How many tickets the current step trains: groups_per_step, or what `total` leaves for the last."""
        if self.total is None:
            return self.groups_per_step
        return min(self.groups_per_step, self.total - self._settled["trained"])

    @property
    def room(self) -> int:
        """How many more tickets the current step can take."""
        return self.step_size - len(self._taken)

    @property
    def closed(self) -> bool:
        return self._closed

    def due(self, ticket: Ticket) -> int:
        """The last step that may train this ticket's work."""
        return ticket.version + self.max_staleness

    # --- admission

    def try_admit(self) -> Ticket | None:
        """A ticket at the current version, or None while there is no credit. Raises GateClosed."""
        if self._closed or self.complete:
            raise GateClosed(
                "no more work is admitted: "
                + ("the gate is closed" if self._closed else f"all {self.total} tickets are trained")
            )
        if self.unsettled >= self.capacity or (
            self.total is not None and self._settled["trained"] + self.unsettled >= self.total
        ):
            return None
        ticket = Ticket(self._next_number, self.version)
        self._next_number += 1
        self._outstanding.add(ticket)
        self._due[self.due(ticket)] += 1
        return ticket

    async def admit(self) -> Ticket:
        """Waits for a credit. Raises GateClosed when no more work is wanted. Cancelled, it has admitted nothing."""
        await anyio.lowlevel.checkpoint()  # before the ticket exists: nobody would settle one lost to a cancellation
        ticket = self.try_admit()
        if ticket is not None:
            return ticket
        wait = self._admit_waiting.begin()
        try:
            while ticket is None:
                await self._change.wait()
                ticket = self.try_admit()
            return ticket
        finally:
            self._admit_waiting.end(wait)

    @property
    def next_change(self) -> anyio.Event:
        """Set when a ticket is settled, a step advances, or the gate is closed next: `take` may have another answer then."""
        return self._change

    def close(self) -> None:
        """Admits nothing more; what is outstanding may still be settled."""
        self._closed = True
        self._notify()

    @property
    def complete(self) -> bool:
        """All `total` tickets are trained."""
        return self.total is not None and self._settled["trained"] >= self.total

    # --- consumption

    def ready(self, ticket: Ticket) -> None:
        """The ticket's work is finished and may be taken."""
        self._check_outstanding(ticket)
        if ticket in self._ready_set:
            raise ValueError(f"ticket {ticket.number} is ready already")
        heapq.heappush(self._ready, (self.due(ticket), ticket.number, ticket))
        self._ready_set.add(ticket)

    def take(self) -> Ticket | None:
        """The next finished ticket for the current step, or None: the step is full, nothing is finished, or what is finished must let a
        ticket that is due earlier go first."""
        if self.room <= 0 or not self._ready:
            return None
        ticket = self._ready[0][2]
        if self.bound == "hard" and not self._others_can_wait(ticket):
            return None
        heapq.heappop(self._ready)
        self._ready_set.remove(ticket)
        self._outstanding.remove(ticket)
        self._forget_due(ticket)
        self._taken.add(ticket)
        return ticket

    def _others_can_wait(self, ticket: Ticket) -> bool:
        """Whether every outstanding ticket due before `ticket` still finds a place if `ticket` takes one of the current step's.

        Those due with it or later keep theirs: the place it takes was counted as its own. That the last step of a `total` is ragged changes
        nothing, because no more tickets are outstanding than there are places left in all.
        """
        due_within = 0
        for t in range(1, self.due(ticket) - self.version + 1):
            due_within += self._due[self.version + t - 1]
            if due_within > t * self.groups_per_step - len(self._taken) - 1:
                return False
        return True

    def _first_late(self, version: int) -> int | None:
        """The first deadline by which more outstanding tickets are due than there are places from step `version` on, none of them taken yet."""
        due_within = 0
        for due, count in sorted(self._due.items()):
            due_within += count
            if due_within > max(0, due - version + 1) * self.groups_per_step:
                return due
        return None

    def settle(self, ticket: Ticket, outcome: Literal["filtered", "failed"]) -> None:
        """Gives back a ticket whose work will not be trained; the source may refill it."""
        self._check_outstanding(ticket)
        if ticket in self._ready_set:
            raise ValueError(f"ticket {ticket.number} is ready to be trained, so it cannot be {outcome}")
        self._outstanding.remove(ticket)
        self._forget_due(ticket)
        self._settled[outcome] += 1
        self._notify()

    def advance(self) -> None:
        """The current step is trained and its weights are published: its tickets are settled, the version rises by one.

        A step that is not full may be trained when the others can wait, as the last one of a finite dataset. Raises ValueError when nothing was
        taken, and under the hard bound when a ticket left behind would be late.
        """
        if not self._taken:
            raise ValueError(f"step {self.version} has taken no ticket, so there is nothing that it can have trained")
        if self.bound == "hard" and (late := self._first_late(self.version + 1)) is not None:
            raise ValueError(
                f"step {self.version} has taken {len(self._taken)} of {self.step_size} tickets: ending it now leaves too many that are due by "
                f"step {late}"
            )
        self._settled["trained"] += len(self._taken)
        self._taken.clear()
        self.version += 1
        self._notify()

    # --- records

    def state(self) -> GateState:
        """For a checkpoint. Raises ValueError within a step, when some tickets are taken but not trained."""
        if self._taken:
            raise ValueError(
                f"{len(self._taken)} tickets are taken for step {self.version}: a gate is saved at a step boundary only"
            )
        settled = self._settled
        return GateState(
            self.version,
            self._next_number,
            settled["trained"],
            settled["filtered"],
            settled["failed"],
            tuple(sorted(self._outstanding)),
        )

    def statistics(self) -> GateStatistics:
        """The record so far."""
        settled = self._settled
        return GateStatistics(
            version=self.version,
            admitted=self._next_number,
            trained=settled["trained"],
            filtered=settled["filtered"],
            failed=settled["failed"],
            unsettled=self.unsettled,
            ready=len(self._ready),
            taken=len(self._taken),
            admit_blocked=self._admit_waiting.seconds(),
        )

    def _check_outstanding(self, ticket: Ticket) -> None:
        if ticket not in self._outstanding:
            raise ValueError(
                f"ticket {ticket.number} is not outstanding: it was settled or taken already, or never admitted"
            )

    def _forget_due(self, ticket: Ticket) -> None:
        due = self.due(ticket)
        self._due[due] -= 1
        if not self._due[due]:
            del self._due[due]

    def _notify(self) -> None:
        self._change.set()
        self._change = anyio.Event()
