"""Programs that fail: who is named, what is still written, how long the drains have."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from engine.runtime import ActorsFailed, Channel, Program, Receiver, Sender
from engine.runtime.testing import schedules
from tests.runtime.pipelines import (
    SCHEDULES,
    Boom,
    all_closed,
    collect,
    count_to,
    everywhere,
    hang,
    idle,
    pipeline,
)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_failure_cancels_the_others_and_the_logger_still_writes_what_was_sent(after: int) -> None:
    async def scenario() -> None:
        into: list[int] = []
        sent: list[int] = []
        cleaned: list[str] = []

        async def failing(numbers: Receiver[int], out: Sender[int]) -> None:
            async for number in numbers:
                if number == after:
                    raise Boom(f"at {number}")
                await out.send(number)
                sent.append(number)

        async def bystander() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                cleaned.append("bystander")

        program = pipeline(into, limit=10**9, doubler=failing)
        program.actor("bystander", bystander)
        with pytest.raises(ActorsFailed, match="program 'pipeline' failed in actor 'doubler'") as failed:
            await program.run()
        (error,) = failed.value.exceptions
        assert repr(error) == f"Boom('at {after}')"
        assert error.__notes__ == ["in actor 'doubler'"]
        assert error.__traceback__ is not None
        assert into == sent == list(range(after))
        assert cleaned == ["bystander"]
        assert all_closed(program)

    everywhere(scenario)


def test_several_that_fail_are_all_named_in_the_order_of_failing() -> None:
    async def scenario() -> None:
        program = Program("several")
        woken = anyio.Event()

        async def fails(name: str) -> None:
            await woken.wait()
            raise Boom(name)

        async def fails_in_cleanup(name: str) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom(name)

        async def wake() -> None:
            woken.set()

        program.actor("a", fails, "a")
        program.actor("b", fails_in_cleanup, "b")
        program.actor("c", fails_in_cleanup, "c")
        program.actor("wake", wake)
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        names = [str(error) for error in failed.value.exceptions]
        assert names[0] == "a"
        assert sorted(names) == ["a", "b", "c"]
        assert [error.__notes__ for error in failed.value.exceptions] == [[f"in actor '{name}'"] for name in names]
        assert ", ".join(f"actor '{name}'" for name in names) in str(failed.value)

    everywhere(scenario)


def test_several_that_fail_at_the_same_moment() -> None:
    async def scenario() -> None:
        program = Program("at once")

        async def fails(name: str) -> None:
            raise Boom(name)

        for name in "abc":
            program.actor(name, fails, name)
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        assert sorted(map(str, failed.value.exceptions)) == ["a", "b", "c"], "nothing waited, so nothing was cancelled"

    everywhere(scenario)


def test_an_actors_own_group_that_fails_while_cancelled_is_recorded() -> None:
    """A group of cancellations and real errors is neither swallowed nor let through past the other failures."""

    async def scenario() -> None:
        async def groups_and_fails_in_cleanup() -> None:
            async def child() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    raise Boom("child")

            async with anyio.create_task_group() as group:
                group.start_soon(child)
                group.start_soon(idle)
                await anyio.sleep_forever()

        async def fails() -> None:
            await anyio.wait_all_tasks_blocked()
            raise Boom("first")

        program = Program("cleanup")
        program.actor("groups", groups_and_fails_in_cleanup)
        program.actor("fails", fails)
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        assert [repr(error) for error in failed.value.exceptions] == ["Boom('first')", "Boom('child')"]

    everywhere(scenario)


def test_an_actors_group_of_several_errors_stays_a_group() -> None:
    async def scenario() -> None:
        async def several() -> None:
            async def fails(text: str) -> None:
                raise Boom(text)

            async with anyio.create_task_group() as group:
                group.start_soon(fails, "x")
                group.start_soon(fails, "y")

        program = Program("group")
        program.actor("several", several)
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        (group,) = failed.value.exceptions
        assert isinstance(group, ExceptionGroup)
        assert sorted(map(str, group.exceptions)) == ["x", "y"]
        assert group.__notes__ == ["in actor 'several'"]

    everywhere(scenario)


def test_cause_and_context_of_an_error_from_a_group_are_kept() -> None:
    async def scenario() -> None:
        async def fails() -> None:
            async def child() -> None:
                try:
                    raise LookupError("the reason")
                except LookupError:
                    raise Boom("implicit")  # noqa: B904  (its context is what the test looks at)

            async with anyio.create_task_group() as group:
                group.start_soon(child)

        program = Program("context")
        program.actor("fails", fails)
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        assert repr(failed.value.exceptions[0].__context__) == "LookupError('the reason')"

    everywhere(scenario, count=5)


@pytest.mark.parametrize("when", ["while others work", "after the others"])
def test_a_drain_that_fails(when: str) -> None:
    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 4)
        metrics: Channel[int] = Channel("metrics", 4)
        written: list[int] = []
        sent: list[int] = []

        async def failing_log(receiver: Receiver[int]) -> None:
            async for number in receiver:
                if when == "while others work" and number == 2:
                    raise Boom("disk full")
            raise Boom("disk full")

        async def source(log: Sender[int], metrics: Sender[int]) -> None:
            for number in range(4):
                await log.send(number)
                await metrics.send(number)
                sent.append(number)
            if when == "while others work":
                await anyio.sleep_forever()

        program = Program("log")
        program.actor("source", source, numbers.sender(), metrics.sender())
        program.drain("log", failing_log, numbers.receiver())
        program.drain("metrics", collect, metrics.receiver(), written)
        with pytest.raises(ActorsFailed, match="failed in actor 'log'") as failed:
            await program.run()
        assert [repr(error) for error in failed.value.exceptions] == ["Boom('disk full')"]
        assert written == sent
        assert all_closed(program)

    everywhere(scenario)


def test_a_drain_that_exceeds_its_grace_is_cancelled_and_named() -> None:
    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        program = Program("slow log", grace=30)

        async def fails(out: Sender[int]) -> None:
            await out.send(1)
            await anyio.sleep(100)
            raise Boom

        program.actor("worker", fails, numbers.sender())
        program.drain("logger", hang, numbers.receiver())
        began = anyio.current_time()
        with pytest.raises(ActorsFailed, match="actor 'worker', actor 'logger'") as failed:
            await program.run()
        assert anyio.current_time() - began == 130
        assert repr(failed.value.exceptions[1]) == "TimeoutError('did not finish within its grace of 30 s')"

    for report in schedules(scenario, count=SCHEDULES, horizon=1e6):
        report.unwrap()


def test_without_a_failure_a_drain_has_all_the_time_it_needs() -> None:
    async def scenario() -> None:
        into: list[int] = []

        async def slow_log(receiver: Receiver[int]) -> None:
            async for number in receiver:
                await anyio.sleep(1000)
                into.append(number)

        numbers: Channel[int] = Channel("numbers", 10)
        program = Program("slow log", grace=1)
        program.actor("source", count_to, 10, numbers.sender())
        program.drain("logger", slow_log, numbers.receiver())
        await program.run()
        assert into == list(range(10))

    for report in schedules(scenario, count=10, horizon=1e6):
        report.unwrap()


def test_within_its_grace_a_drain_may_wait() -> None:
    async def scenario() -> None:
        into: list[int] = []

        async def slow_log(receiver: Receiver[int]) -> None:
            async for number in receiver:
                await anyio.sleep(1)
                into.append(number)

        async def fails(out: Sender[int]) -> None:
            await count_to(4, out)
            raise Boom

        numbers: Channel[int] = Channel("numbers", 10)
        program = Program("slow log", grace=4.5)
        program.actor("source", fails, numbers.sender())
        program.drain("logger", slow_log, numbers.receiver())
        with pytest.raises(ActorsFailed, match="failed in actor 'source'") as failed:
            await program.run()
        assert len(failed.value.exceptions) == 1
        assert into == [0, 1, 2, 3]

    for report in schedules(scenario, count=10, horizon=1e6):
        report.unwrap()


def test_a_late_failure_among_drains_starts_the_grace() -> None:
    """The workers have long ended when one drain fails and the other hangs: the run must not hang with it."""

    async def scenario() -> None:
        program = Program("late", grace=30)
        left: Channel[int] = Channel("left", 1)
        right: Channel[int] = Channel("right", 1)

        async def fails_late(receiver: Receiver[int]) -> None:
            async for _ in receiver:
                pass
            await anyio.sleep(100)
            raise Boom

        program.actor("source", count_to, 3, left.sender())
        program.actor("other source", count_to, 3, right.sender())
        program.drain("fails", fails_late, left.receiver())
        program.drain("hangs", hang, right.receiver())
        began = anyio.current_time()
        with pytest.raises(ActorsFailed, match="actor 'fails', actor 'hangs'"):
            await program.run()
        assert anyio.current_time() - began == 130

    for report in schedules(scenario, count=SCHEDULES, horizon=1e6):
        report.unwrap()


def test_a_second_failure_does_not_start_the_grace_anew() -> None:
    async def scenario() -> None:
        program = Program("twice", grace=30)
        left: Channel[int] = Channel("left", 1)
        right: Channel[int] = Channel("right", 1)

        async def fails(*_: Sender[int]) -> None:
            await anyio.sleep(100)
            raise Boom

        async def fails_within_the_grace(receiver: Receiver[int]) -> None:
            await anyio.sleep(120)
            raise Boom

        program.actor("worker", fails, left.sender(), right.sender())
        program.drain("log", fails_within_the_grace, left.receiver())
        program.drain("hangs", hang, right.receiver())
        began = anyio.current_time()
        with pytest.raises(ActorsFailed, match="actor 'worker', actor 'log', actor 'hangs'"):
            await program.run()
        assert anyio.current_time() - began == 130

    for report in schedules(scenario, count=SCHEDULES, horizon=1e6):
        report.unwrap()


@pytest.mark.parametrize("late", [False, True])
def test_a_cancellation_from_outside_starts_the_grace(late: bool) -> None:
    async def scenario() -> None:
        program = Program("cancelled", grace=30)
        numbers: Channel[int] = Channel("numbers", 1)

        async def source(out: Sender[int]) -> None:
            await out.send(1)
            if not late:
                await anyio.sleep_forever()

        program.actor("source", source, numbers.sender())
        program.drain("hangs", hang, numbers.receiver())
        began = anyio.current_time()
        with pytest.raises(ActorsFailed, match="actor 'hangs'"), anyio.move_on_after(100):
            await program.run()
        assert anyio.current_time() - began == 130
        assert all_closed(program)

    for report in schedules(scenario, count=SCHEDULES, horizon=1e6):
        report.unwrap()


@pytest.mark.parametrize("grace", [-1, float("nan")])
def test_a_grace_that_makes_no_sense_is_refused(grace: float) -> None:
    with pytest.raises(ValueError, match="program 'p': grace must be 0 seconds or more"):
        Program("p", grace=grace)
