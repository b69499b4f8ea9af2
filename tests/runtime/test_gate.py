"""The staleness gate: its rules in small cases, and what it refuses. The properties under random use are in `test_gate_properties`."""

from __future__ import annotations

import anyio
import attrs
import pytest

from engine.runtime import GateClosed, GateState, StalenessGate, Ticket, simulate
from engine.runtime.testing import every_cancellation, schedules


def admit(gate: StalenessGate, count: int) -> list[Ticket]:
    tickets = [gate.try_admit() for _ in range(count)]
    assert None not in tickets
    return [ticket for ticket in tickets if ticket is not None]


def train(gate: StalenessGate, tickets: list[Ticket]) -> None:
    """One full step of these tickets."""
    for ticket in tickets:
        gate.ready(ticket)
    assert {gate.take() for _ in tickets} == set(tickets)
    gate.advance()


# --- admission


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_the_pace(max_staleness: int) -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=max_staleness)
    tickets = admit(gate, 2 * (max_staleness + 1))
    assert gate.capacity == gate.unsettled == len(tickets)
    assert gate.try_admit() is None
    assert [ticket.number for ticket in tickets] == list(range(len(tickets)))
    assert {ticket.version for ticket in tickets} == {0}
    assert {gate.due(ticket) for ticket in tickets} == {max_staleness}


def test_a_credit_comes_back_when_work_is_trained_filtered_or_failed() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=0)
    first, second = admit(gate, 2)
    gate.settle(first, "filtered")
    (third,) = admit(gate, 1)
    gate.settle(second, "failed")
    (fourth,) = admit(gate, 1)
    assert gate.try_admit() is None
    gate.ready(third)
    gate.ready(fourth)
    assert (gate.take(), gate.take(), gate.take()) == (third, fourth, None)
    assert gate.try_admit() is None, "what is taken counts until its step is trained"
    gate.advance()
    assert [ticket.version for ticket in admit(gate, 2)] == [1, 1]
    record = gate.statistics()
    assert (record.admitted, record.trained, record.filtered, record.failed, record.unsettled) == (6, 2, 1, 1, 2)


def test_a_total_is_admitted_and_refilled_never_exceeded() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1, total=3)
    first, second, third = admit(gate, 3)
    assert gate.try_admit() is None
    gate.settle(third, "failed")
    (fourth,) = admit(gate, 1)
    train(gate, [first, second])
    assert gate.try_admit() is None
    assert not gate.complete
    assert (gate.step_size, gate.room) == (1, 1), "the last step is ragged"
    train(gate, [fourth])
    assert gate.complete
    assert gate.room == 0
    with pytest.raises(GateClosed, match="all 3 tickets are trained"):
        gate.try_admit()


def test_a_total_of_nothing_is_complete() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1, total=0)
    assert gate.complete
    with pytest.raises(GateClosed):
        gate.try_admit()


def test_a_closed_gate_admits_nothing_and_lets_the_rest_be_trained() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    tickets = admit(gate, 3)
    gate.close()
    assert gate.closed
    with pytest.raises(GateClosed, match="the gate is closed"):
        gate.try_admit()
    train(gate, tickets[:2])
    train(gate, tickets[2:])
    assert gate.unsettled == 0


def test_admission_waits_for_a_credit_and_says_how_long() -> None:
    async def program() -> list[tuple[float, int]]:
        gate = StalenessGate(groups_per_step=1, max_staleness=0)
        seen = []

        async def source() -> None:
            while True:
                try:
                    ticket = await gate.admit()
                except GateClosed:
                    return
                seen.append((anyio.current_time(), ticket.number))

        async with anyio.create_task_group() as group:
            group.start_soon(source)
            await anyio.sleep(10)
            assert gate.statistics().admit_blocked == 10, "a wait that goes on counts"
            gate.settle(Ticket(0, 0), "failed")
            await anyio.sleep(5)
            gate.ready(Ticket(1, 0))
            gate.take()
            await anyio.sleep(5)
            gate.advance()
            await anyio.sleep(1)
            gate.close()
        assert gate.statistics().admit_blocked == 21
        return seen

    for report in schedules(program, count=10):
        assert report.unwrap() == [(0, 0), (10, 1), (20, 2)]


def test_waiting_for_a_credit_costs_no_wakeups() -> None:
    async def program() -> None:
        gate = StalenessGate(groups_per_step=1, max_staleness=0)
        admit(gate, 1)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(gate.admit)
            await anyio.sleep(3600)
            group.cancel_scope.cancel()

    report = simulate(program)
    report.unwrap()
    assert report.steps < 20


def test_a_cancelled_admission_has_admitted_nothing() -> None:
    gates: list[StalenessGate] = []
    received: list[Ticket] = []

    async def program() -> None:
        received.clear()
        gate = StalenessGate(groups_per_step=2, max_staleness=0)
        gates.append(gate)

        async def source() -> None:
            while True:
                received.append(await gate.admit())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(source)
            await anyio.sleep(1)
            gate.settle(received[0], "failed")
            await anyio.sleep(1)
            group.cancel_scope.cancel()

    runs = 0
    for seed in range(5):
        for report in every_cancellation(program, seed=seed):
            report.unwrap()
            runs += 1
            assert [ticket.number for ticket in received] == list(range(gates[-1].statistics().admitted))
    assert runs > 50


# --- consumption


def test_at_zero_staleness_a_step_takes_its_own_tickets_in_any_order() -> None:
    gate = StalenessGate(groups_per_step=3, max_staleness=0)
    tickets = admit(gate, 3)
    for ticket in reversed(tickets):
        gate.ready(ticket)
        assert gate.take() == ticket
    assert gate.room == 0
    assert gate.take() is None
    gate.advance()
    assert gate.version == 1


def test_of_those_that_are_finished_the_earliest_due_goes_first() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    tickets = admit(gate, 4)
    for ticket in (tickets[3], tickets[1], tickets[2]):
        gate.ready(ticket)
    assert [gate.take(), gate.take()] == [tickets[1], tickets[2]]


def test_a_straggler_is_waited_for_in_the_step_that_it_is_due_in_and_no_earlier() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    straggler, *others = admit(gate, 4)
    train(gate, others[:2])
    later = admit(gate, 2)
    for ticket in (others[2], *later):
        gate.ready(ticket)
    assert gate.take() == others[2]
    assert gate.take() is None, "the last place of step 1 is the straggler's, who was admitted at 0"
    gate.ready(straggler)
    assert gate.take() == straggler
    gate.advance()
    assert [gate.take(), gate.take()] == later


def test_places_run_out_before_the_deadline_itself() -> None:
    """Nobody is due now, and still a finished ticket must wait: those due by the next step need this step's places as well."""
    gate = StalenessGate(groups_per_step=1, max_staleness=2)
    early = admit(gate, 3)
    train(gate, early[:1])
    (late,) = admit(gate, 1)
    gate.ready(late)
    assert [gate.due(ticket) for ticket in (*early[1:], late)] == [2, 2, 3]
    assert gate.version == 1
    assert gate.take() is None
    gate.ready(early[2])
    assert gate.take() == early[2]


def test_a_filtered_straggler_is_not_waited_for() -> None:
    gate = StalenessGate(groups_per_step=1, max_staleness=1)
    straggler, second = admit(gate, 2)
    train(gate, [second])
    (third,) = admit(gate, 1)
    gate.ready(third)
    assert gate.take() is None
    gate.settle(straggler, "filtered")
    assert gate.take() == third


def test_the_soft_bound_waits_for_nobody() -> None:
    gate = StalenessGate(groups_per_step=1, max_staleness=1, bound="soft")
    straggler, second = admit(gate, 2)
    train(gate, [second])
    for _ in range(5):
        (ticket,) = admit(gate, 1)
        assert gate.try_admit() is None, "the pace holds all the same"
        train(gate, [ticket])
    gate.ready(straggler)
    assert gate.take() == straggler
    assert gate.version - straggler.version == 6


# --- wrong use


def test_a_ticket_is_settled_once() -> None:
    gate = StalenessGate(groups_per_step=1, max_staleness=1)
    first, second = admit(gate, 2)
    gate.ready(first)
    with pytest.raises(ValueError, match="ticket 0 is ready already"):
        gate.ready(first)
    with pytest.raises(ValueError, match="ticket 0 is ready to be trained, so it cannot be filtered"):
        gate.settle(first, "filtered")
    gate.take()
    gate.settle(second, "failed")
    for ticket in (first, second, Ticket(7, 0), Ticket(0, 1)):
        with pytest.raises(ValueError, match=f"ticket {ticket.number} is not outstanding"):
            gate.ready(ticket)
        with pytest.raises(ValueError, match=f"ticket {ticket.number} is not outstanding"):
            gate.settle(ticket, "failed")


def test_a_step_without_work_is_refused() -> None:
    gate = StalenessGate(groups_per_step=1, max_staleness=1)
    admit(gate, 1)
    with pytest.raises(ValueError, match="step 0 has taken no ticket"):
        gate.advance()


def test_a_step_that_ends_too_early_for_a_straggler_is_refused() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=0)
    first, second = admit(gate, 2)
    gate.ready(first)
    gate.take()
    with pytest.raises(
        ValueError, match="step 0 has taken 1 of 2 tickets: ending it now leaves too many that are due by step 0"
    ):
        gate.advance()
    gate.settle(second, "failed")
    gate.advance()
    assert gate.statistics().trained == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups_per_step": 0}, "groups_per_step must be at least 1, got 0"),
        ({"max_staleness": -1}, "max_staleness must be 0 or more, got -1"),
        ({"bound": "loose"}, "bound must be 'hard' or 'soft', got 'loose'"),
        ({"total": -1}, "total must be 0 or more, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StalenessGate(**{"groups_per_step": 2, "max_staleness": 1, **settings})


# --- saving and restoring


def test_a_gate_is_saved_between_steps_only() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    tickets = admit(gate, 4)
    gate.ready(tickets[1])
    assert gate.state() == GateState(0, 4, 0, 0, 0, tuple(tickets)), "what is ready is outstanding to a restored gate"
    gate.take()
    with pytest.raises(ValueError, match="1 tickets are taken for step 0: a gate is saved at a step boundary only"):
        gate.state()


def test_a_state_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"accounts for 3 tickets \(2 trained, 0 filtered, 0 failed, 1 outstanding\), but 4 were admitted",
    ):
        GateState(1, 4, 2, 0, 0, (Ticket(2, 0),))


def test_restoring_under_a_smaller_staleness_than_the_tickets_need_is_refused() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=2)
    admit(gate, 6)
    state = gate.state()
    with pytest.raises(ValueError, match=r"too many tickets are due by step 1 .* larger max_staleness than 1"):
        StalenessGate(groups_per_step=2, max_staleness=1, state=state)
    with pytest.raises(ValueError, match="too many tickets are due by step 2"):
        StalenessGate(groups_per_step=1, max_staleness=2, state=state)
    for settings in (
        {"groups_per_step": 3, "max_staleness": 1},
        {"groups_per_step": 2, "max_staleness": 1, "bound": "soft"},
    ):
        restored = StalenessGate(**settings, state=state)
        assert restored.unsettled == 6
        assert restored.try_admit() is None


def test_restoring_tickets_that_are_overdue_is_refused() -> None:
    state = GateState(3, 8, 6, 0, 0, (Ticket(6, 0), Ticket(7, 2)))
    with pytest.raises(ValueError, match="due by step 2"):
        StalenessGate(groups_per_step=2, max_staleness=2, state=state)
    StalenessGate(groups_per_step=2, max_staleness=3, state=state)


def test_restoring_under_a_total_that_is_too_small_is_refused() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    tickets = admit(gate, 4)
    train(gate, tickets[:2])
    with pytest.raises(ValueError, match="2 tickets are trained and 2 under way already: a total of 3 is too small"):
        StalenessGate(groups_per_step=2, max_staleness=1, total=3, state=gate.state())
    assert StalenessGate(groups_per_step=2, max_staleness=1, total=4, state=gate.state()).step_size == 2


def test_statistics_are_one_frozen_record() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    tickets = admit(gate, 3)
    gate.ready(tickets[0])
    gate.ready(tickets[1])
    gate.take()
    assert attrs.asdict(gate.statistics()) == {
        "version": 0,
        "admitted": 3,
        "trained": 0,
        "filtered": 0,
        "failed": 0,
        "unsettled": 3,
        "ready": 1,
        "taken": 1,
        "admit_blocked": 0.0,
    }
