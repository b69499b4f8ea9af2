"""Programs cancelled or interrupted from outside: nothing is left, nothing is swallowed."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from engine.runtime import ActorsFailed, Channel, Program, Receiver, Sender, simulate
from engine.runtime.testing import every_cancellation, schedules
from tests.runtime.pipelines import (
    SCHEDULES,
    Boom,
    all_closed,
    collect,
    everywhere,
    idle,
    pipeline,
)


def test_cancelled_from_outside_nothing_is_raised_and_the_logger_writes_what_was_sent() -> None:
    async def scenario() -> None:
        into: list[int] = []
        sent: list[int] = []

        async def ticking(out: Sender[int]) -> None:
            number = 0
            while True:
                await out.send(number)
                sent.append(number)
                number += 1
                await anyio.sleep(1)

        numbers: Channel[int] = Channel("numbers", 3)
        program = Program("ticker")
        program.actor("source", ticking, numbers.sender())
        program.drain("logger", collect, numbers.receiver(), into)
        with anyio.move_on_after(9.5) as scope:
            await program.run()
        assert scope.cancelled_caught
        assert into == sent == list(range(10))
        assert all_closed(program)

    for report in schedules(scenario, count=SCHEDULES, horizon=1e6):
        report.unwrap()


def test_a_failure_while_being_cancelled_is_raised_not_swallowed() -> None:
    async def scenario() -> None:
        async def fails_in_cleanup() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom("in cleanup")

        async def cancel(scope: anyio.CancelScope) -> None:
            await anyio.wait_all_tasks_blocked()
            scope.cancel()

        program = Program("cleanup")
        program.actor("worker", fails_in_cleanup)
        program.actor("idle", idle)
        async with anyio.create_task_group() as group:
            with pytest.raises(ActorsFailed, match="failed in actor 'worker'"), anyio.CancelScope() as scope:
                group.start_soon(cancel, scope)
                await program.run()
            await anyio.lowlevel.checkpoint()  # and no cancellation is left behind

    everywhere(scenario)


def test_a_failure_while_being_stopped_by_feeds_and_cancelled_at_once_is_kept() -> None:
    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        out = numbers.sender()

        async def fails_in_cleanup(out: Sender[int]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom("in cleanup")

        async def fails(receiver: Receiver[int]) -> None:
            await anyio.wait_all_tasks_blocked()
            raise Boom("first")

        program = Program("both")
        program.actor("source", fails_in_cleanup, out, feeds=out)
        program.actor("consumer", fails, numbers.receiver())
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        assert [str(error) for error in failed.value.exceptions] == ["first", "in cleanup"]

    everywhere(scenario)


def test_cancelled_at_every_step_nothing_is_left_and_what_was_sent_was_written() -> None:
    state: dict[str, Any] = {}

    async def scenario() -> None:
        into: list[int] = []
        sent: list[int] = []

        async def doubler(numbers: Receiver[int], out: Sender[int]) -> None:
            async for number in numbers:
                await out.send(number)
                sent.append(number)

        program = pipeline(into, limit=4, doubler=doubler, capacity=1)
        state.update(program=program, into=into, sent=sent)
        await program.run()

    outcomes = []
    for seed in range(4):
        for report in every_cancellation(scenario, seed=seed, horizon=1e6):
            report.unwrap()
            outcomes.append(report.cancelled)
            if "program" in state:
                assert state["into"] == state["sent"]
                assert all_closed(state["program"])
            state.clear()
    assert outcomes.count(True) > 100


def test_cancelled_at_every_step_while_it_fails() -> None:
    """Cancellation and failure at once, in any order: no third outcome, no hang, nothing left open."""
    programs: list[Program] = []

    async def scenario() -> None:
        async def fails(numbers: Receiver[int], out: Sender[int]) -> None:
            async for number in numbers:
                if number == 1:
                    raise Boom("on purpose")
                await out.send(number)

        programs.append(pipeline([], limit=3, doubler=fails, capacity=1))
        await programs[-1].run()

    outcomes = set()
    for seed in range(4):
        for report in every_cancellation(scenario, seed=seed, horizon=1e6):
            if report.error is None:
                assert report.cancelled
                outcomes.add("cancelled")
            else:
                assert isinstance(report.error, ActorsFailed)
                assert [str(error) for error in report.error.exceptions] == ["on purpose"]
                outcomes.add("failed")
            assert all(all_closed(program) for program in programs)
            programs.clear()
    assert outcomes == {"cancelled", "failed"}


@pytest.mark.anyio
async def test_cancelled_before_it_starts() -> None:
    into: list[int] = []
    program = pipeline(into)
    async with anyio.create_task_group() as group:
        group.start_soon(program.run)
        group.cancel_scope.cancel()
    assert all_closed(program)
    assert into == []


def test_cancelled_by_asyncio_itself() -> None:
    """A host that knows nothing of anyio cancels its task: drains are drained, nothing is left, the cancellation goes on."""
    into: list[int] = []

    async def one_then_wait(out: Sender[int]) -> None:
        await out.send(1)
        await anyio.sleep_forever()

    async def main() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        program = Program("hosted")
        program.actor("source", one_then_wait, numbers.sender())
        program.drain("logger", collect, numbers.receiver(), into)
        host = asyncio.create_task(program.run())
        await anyio.wait_all_tasks_blocked()
        host.cancel()
        with pytest.raises(asyncio.CancelledError):
            await host
        assert all_closed(program)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert into == [1]


def test_a_timeout_of_asyncio_around_a_program() -> None:
    async def main() -> None:
        program = Program("hosted")
        program.actor("idle", idle)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await program.run()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_comes_through_as_itself(interrupt: type[BaseException]) -> None:
    """On trio it is raised in whatever task runs; the others are cancelled, drains drained, ends closed."""
    into: list[int] = []
    kept: list[Program] = []

    async def interrupted(numbers: Receiver[int], out: Sender[int]) -> None:
        async for number in numbers:
            await out.send(number)
            if number == 2:
                raise interrupt

    async def scenario() -> None:
        program = pipeline(into, limit=10**9, doubler=interrupted)
        kept.append(program)
        await program.run()

    for seed in range(SCHEDULES):
        with pytest.raises(interrupt):
            simulate(scenario, seed=seed, horizon=1e6)
        assert into == [0, 1, 2]
        assert all_closed(kept.pop())
        into.clear()


def test_an_interrupt_on_asyncio() -> None:
    kept: list[Program] = []
    into: list[int] = []

    async def interrupted(numbers: Receiver[int], out: Sender[int]) -> None:
        await out.send(await numbers.receive())
        await anyio.wait_all_tasks_blocked()
        raise KeyboardInterrupt

    async def scenario() -> None:
        program = pipeline(into, limit=10**9, doubler=interrupted)
        kept.append(program)
        await program.run()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(scenario, backend="asyncio")
    assert into == [0]
    assert all_closed(kept[0])


def test_a_real_ctrl_c_on_trio() -> None:
    into: list[int] = []

    async def press(numbers: Receiver[int], out: Sender[int]) -> None:
        await out.send(await numbers.receive())
        await anyio.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    async def scenario() -> None:
        await pipeline(into, limit=10**9, doubler=press).run()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(scenario, backend="trio")
    assert into == [0]


def test_a_real_ctrl_c_on_asyncio() -> None:
    into: list[int] = []

    async def press(numbers: Receiver[int], out: Sender[int]) -> None:
        await out.send(await numbers.receive())
        await anyio.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    async def scenario() -> None:
        await pipeline(into, limit=10**9, doubler=press).run()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(scenario, backend="asyncio")
    assert into == [0]
