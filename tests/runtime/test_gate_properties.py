"""The staleness gate under random use: against a brute-force oracle, and within running programs under many schedules.

The oracle knows nothing of counting: tickets and places (of a step, up to `groups_per_step` each) are the two sides of a graph, a ticket and a place
are joined when the step is not past the ticket's deadline, and every outstanding ticket can be trained in time if and only if there is a
matching that covers them all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import anyio
import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from engine.runtime import (
    Channel,
    GateClosed,
    GateStatistics,
    Program,
    Receiver,
    Sender,
    StalenessGate,
    Ticket,
    simulate,
)
from engine.runtime.testing import every_cancellation


def can_all_be_trained_in_time(deadlines: Iterable[int], places: dict[int, int]) -> bool:
    """Whether tickets with these deadlines fit into the places of each step: a maximum matching by augmenting paths."""
    slots = [step for step, count in places.items() for _ in range(count)]
    holder: dict[int, int] = {}
    tickets = list(deadlines)

    def place(ticket: int, tried: set[int]) -> bool:
        for slot, step in enumerate(slots):
            if step <= tickets[ticket] and slot not in tried:
                tried.add(slot)
                if slot not in holder or place(holder[slot], tried):
                    holder[slot] = ticket
                    return True
        return False

    return all(place(ticket, set()) for ticket in range(len(tickets)))


def test_the_oracle() -> None:
    assert can_all_be_trained_in_time([0, 1, 1], {0: 2, 1: 1})
    assert can_all_be_trained_in_time([2, 2, 0], {0: 1, 1: 1, 2: 1})
    assert not can_all_be_trained_in_time([0, 0], {0: 1, 1: 5})
    assert not can_all_be_trained_in_time([1, 1, 1], {0: 1, 1: 1, 2: 9})
    assert not can_all_be_trained_in_time([3], {4: 1})
    assert can_all_be_trained_in_time([], {})


class GateMachine(RuleBasedStateMachine):
    """A gate, everything that may be done with it in any order, and what must then hold."""

    under_way = Bundle("under_way")

    @initialize(
        groups_per_step=st.integers(1, 3),
        max_staleness=st.integers(0, 4),
        total=st.none() | st.integers(1, 20),
    )
    def build(self, groups_per_step: int, max_staleness: int, total: int | None) -> None:
        self.settings: dict[str, Any] = {
            "groups_per_step": groups_per_step,
            "max_staleness": max_staleness,
            "total": total,
        }
        self.gate = StalenessGate(**self.settings)
        self.twin: StalenessGate | None = None
        """Restored from a saved state of the gate, and used in the same way ever since."""
        self.outstanding: set[Ticket] = set()
        self.ready: set[Ticket] = set()
        self.taken: set[Ticket] = set()
        self.trained: set[Ticket] = set()
        self.filtered = self.failed = 0

    # --- the model

    def places(self, *, taken: int) -> dict[int, int]:
        """Places left in each step from the current one on, when `taken` of the current step's are gone."""
        size, version = self.settings["groups_per_step"], self.gate.version
        left = 10**9 if self.settings["total"] is None else self.settings["total"] - len(self.trained)
        places = {}
        for step in range(version, version + self.settings["max_staleness"] + 2):
            places[step] = min(size, left)
            left -= places[step]
        places[version] -= taken
        return places

    def fits(self, tickets: Iterable[Ticket], *, taken: int) -> bool:
        deadlines = [ticket.version + self.settings["max_staleness"] for ticket in tickets]
        return can_all_be_trained_in_time(deadlines, self.places(taken=taken))

    def both(self, name: str, *args: Any) -> Any:
        """Does the same to the gate and its twin, which must agree."""
        results = []
        for gate in (self.gate, self.twin):
            if gate is not None:
                try:
                    results.append(getattr(gate, name)(*args))
                except GateClosed:
                    results.append(GateClosed)
        assert all(result == results[0] for result in results)
        return results[0]

    # --- what may be done

    @rule(target=under_way, count=st.integers(1, 4))
    def admit(self, count: int) -> Any:
        admitted = []
        for _ in range(count):
            ticket = self.both("try_admit")
            total = self.settings["total"]
            if ticket is GateClosed:
                assert self.gate.closed or len(self.trained) == total
            elif ticket is None:
                used_up = total is not None and len(self.trained) + len(self.outstanding) + len(self.taken) == total
                one_more = Ticket(10**6, self.gate.version)
                assert used_up or not self.fits({*self.outstanding, one_more}, taken=len(self.taken)), (
                    "the pace is stricter than it must be"
                )
            else:
                assert ticket.version == self.gate.version
                self.outstanding.add(ticket)
                admitted.append(ticket)
        return multiple(*admitted)

    @rule(ticket=consumes(under_way))
    def finish(self, ticket: Ticket) -> None:
        self.both("ready", ticket)
        self.ready.add(ticket)

    @rule(ticket=consumes(under_way), outcome=st.sampled_from(["filtered", "failed"]))
    def give_back(self, ticket: Ticket, outcome: str) -> None:
        self.both("settle", ticket, outcome)
        self.outstanding.remove(ticket)
        self.filtered += outcome == "filtered"
        self.failed += outcome == "failed"

    @precondition(lambda self: self.ready)
    @rule(count=st.integers(1, 3))
    def take(self, count: int) -> None:
        for _ in range(count):
            if not self.take_one():
                return

    def take_one(self) -> bool:
        room = self.places(taken=len(self.taken))[self.gate.version]
        takeable = {
            ticket
            for ticket in self.ready
            if room > 0 and self.fits(self.outstanding - {ticket}, taken=len(self.taken) + 1)
        }
        ticket = self.both("take")
        if ticket is None:
            assert not takeable, (
                "the gate waits although some finished ticket could be trained without making another one late"
            )
            return False
        assert ticket in takeable, "taking this one makes another one late"
        assert ticket == min(self.ready, key=lambda ticket: (ticket.version, ticket.number)), "not the earliest due"
        self.ready.remove(ticket)
        self.outstanding.remove(ticket)
        self.taken.add(ticket)
        return True

    @precondition(lambda self: self.taken)
    @rule()
    def advance(self) -> None:
        """Full steps may always be ended; others exactly when nobody left behind is then late."""
        left_behind = [ticket.version + self.settings["max_staleness"] for ticket in self.outstanding]
        version, size = self.gate.version, self.settings["groups_per_step"]
        later = dict.fromkeys(range(version + 1, version + self.settings["max_staleness"] + 2), size)
        if not can_all_be_trained_in_time(left_behind, later):
            assert self.gate.room > 0
            with pytest.raises(ValueError, match="ending it now leaves too many"):
                self.gate.advance()
            return
        assert all(version - ticket.version <= self.settings["max_staleness"] for ticket in self.taken)
        assert not self.taken & self.trained
        self.both("advance")
        self.trained |= self.taken
        self.taken.clear()

    @precondition(lambda self: not self.taken)
    @rule()
    def save_and_restore(self) -> None:
        state = self.gate.state()
        self.twin = StalenessGate(**self.settings, state=state)
        assert self.twin.state() == state
        if self.gate.closed:
            self.twin.close()
        for ticket in sorted(self.ready, key=lambda ticket: -ticket.number):  # in whatever order
            self.twin.ready(ticket)

    @precondition(lambda self: len(self.trained) > 6)
    @rule()
    def close(self) -> None:
        self.both("close")

    # --- what must hold

    @invariant()
    def everything_is_accounted_for(self) -> None:
        if not hasattr(self, "gate"):
            return
        for gate in (self.gate, self.twin or self.gate):
            record = gate.statistics()
            assert record.admitted == record.trained + record.filtered + record.failed + record.unsettled
            expected = GateStatistics(
                version=self.gate.version,
                admitted=len(self.trained) + self.filtered + self.failed + len(self.outstanding) + len(self.taken),
                trained=len(self.trained),
                filtered=self.filtered,
                failed=self.failed,
                unsettled=len(self.outstanding) + len(self.taken),
                ready=len(self.ready),
                taken=len(self.taken),
                admit_blocked=0.0,
            )
            assert record == expected

    @invariant()
    def nobody_is_bound_to_be_late(self) -> None:
        if hasattr(self, "gate"):
            assert self.fits(self.outstanding, taken=len(self.taken))

    def teardown(self) -> None:
        """From wherever it is left, the gate trains what is outstanding, in time: it never locks up."""
        if not hasattr(self, "gate"):
            return
        self.both("close")
        for ticket in self.outstanding - self.ready:
            self.both("ready", ticket)
            self.ready.add(ticket)
        while self.outstanding or self.taken:
            while self.take_one():
                pass
            assert self.taken
            self.advance()
        assert self.gate.unsettled == 0


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)


# --- within a program


@attrs.frozen
class Run:
    """What happened in a simulated run."""

    staleness: list[int]
    """Of each ticket trained, in order."""
    steps: list[int]
    """Tickets of each step."""
    numbers: list[int]
    """Tickets trained."""
    gate: GateStatistics
    idle_with_work: float
    """Seconds that the trainer waited although something was finished."""


async def train(
    *,
    groups_per_step: int,
    max_staleness: int,
    total: int,
    seed: int,
    bound: str = "hard",
    spoilt: float = 0.2,
    log: list[int] | None = None,
) -> Run:
    """Source, rollouts with long-tailed durations and outcomes, and a trainer: the gate as a run uses it."""
    gate = StalenessGate(groups_per_step=groups_per_step, max_staleness=max_staleness, total=total, bound=bound)
    draw = random.Random(seed)
    jobs: Channel[Ticket] = Channel("jobs", gate.capacity)
    finished: Channel[Ticket] = Channel("finished", gate.capacity)
    staleness: list[int] = []
    steps: list[int] = []
    numbers = log if log is not None else []
    idle_with_work = 0.0

    def check() -> None:
        record = gate.statistics()
        assert record.admitted == record.trained + record.filtered + record.failed + record.unsettled
        assert record.unsettled <= gate.capacity

    async def source(jobs: Sender[Ticket]) -> None:
        while True:
            try:
                ticket = await gate.admit()
            except GateClosed:
                return
            check()
            await jobs.send(ticket)

    async def rollout(ticket: Ticket, finished: Sender[Ticket]) -> None:
        await anyio.sleep(min(draw.lognormvariate(0, 1.5), 30))
        fate = draw.random()
        if fate < spoilt:
            gate.settle(ticket, "filtered" if fate < spoilt / 2 else "failed")
            check()
        else:
            await finished.send(ticket)

    async def rollouts(jobs: Receiver[Ticket], finished: Sender[Ticket]) -> None:
        async with anyio.create_task_group() as group:
            async for ticket in jobs:
                group.start_soon(rollout, ticket, finished)

    async def trainer(finished: Receiver[Ticket]) -> None:
        nonlocal idle_with_work
        while not gate.complete:
            taken: list[Ticket] = []
            while gate.room:
                if (ticket := gate.take()) is not None:
                    taken.append(ticket)
                    check()
                    continue
                began, ready = anyio.current_time(), gate.statistics().ready
                gate.ready(await finished.receive())
                idle_with_work += (anyio.current_time() - began) * (ready > 0)
            await anyio.sleep(0.5)
            staleness.extend(gate.version - ticket.version for ticket in taken)
            numbers.extend(ticket.number for ticket in taken)
            steps.append(len(taken))
            gate.advance()
            check()

    program = Program("training")
    out = jobs.sender()
    program.actor("source", source, out, feeds=out)
    program.actor("rollouts", rollouts, jobs.receiver(), finished.sender())
    program.actor("trainer", trainer, finished.receiver())
    await program.run()
    return Run(staleness, steps, numbers, gate.statistics(), idle_with_work)


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(("groups_per_step", "total"), [(1, 12), (4, 38), (8, 80)])
def test_no_ticket_is_ever_staler_than_the_bound(max_staleness: int, groups_per_step: int, total: int) -> None:
    """17 schedules each, 255 in all: every step full (the last as large as what is left), every ticket trained once, none late."""
    worst = 0
    for seed in range(17):
        arguments = {"groups_per_step": groups_per_step, "max_staleness": max_staleness, "total": total, "seed": seed}
        run = simulate(lambda arguments=arguments: train(**arguments), seed=seed, horizon=1e6).unwrap()
        assert max(run.staleness) <= max_staleness
        assert min(run.staleness) >= 0
        full, last = divmod(total, groups_per_step)
        assert run.steps == [groups_per_step] * full + [last] * (last > 0)
        assert len(set(run.numbers)) == len(run.numbers) == total
        assert (run.gate.trained, run.gate.unsettled) == (total, 0)
        assert run.gate.admitted == total + run.gate.filtered + run.gate.failed
        worst = max(worst, *run.staleness)
    assert worst == max_staleness, "the bound was reached, so that it was tested"


def test_the_soft_bound_is_exceeded_by_stragglers_and_waits_for_none() -> None:
    worst, means, hard_idle = 0, [], 0.0
    for seed in range(20):
        arguments = {"groups_per_step": 4, "max_staleness": 1, "total": 80, "seed": seed}
        soft = simulate(lambda arguments=arguments: train(bound="soft", **arguments), seed=seed, horizon=1e6).unwrap()
        hard = simulate(lambda arguments=arguments: train(**arguments), seed=seed, horizon=1e6).unwrap()
        worst = max(worst, *soft.staleness)
        means.append(sum(soft.staleness) / len(soft.staleness))
        assert soft.idle_with_work == 0
        hard_idle += hard.idle_with_work
    assert worst > 3
    assert max(means) < 2
    assert hard_idle > 0


def test_cancelled_anywhere_everything_is_accounted_for() -> None:
    """At every step of a small run: no ticket is trained twice, and the trained ones are the gate's."""
    logs: list[list[int]] = []

    async def program() -> Run:
        logs.append([])
        return await train(groups_per_step=2, max_staleness=1, total=6, seed=3, log=logs[-1])

    cancelled = 0
    for report in every_cancellation(program, horizon=1e6, stride=3):
        report.unwrap()
        cancelled += report.cancelled
        assert len(set(logs[-1])) == len(logs[-1]) <= 6
    assert cancelled > 20
    assert len(logs[-1]) == 6
