"""Actors that may be restarted."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from engine.runtime import ActorsFailed, Channel, Program, Receiver, Restarts, Sender, simulate
from tests.runtime.pipelines import (
    Boom,
    collect,
    count_to,
    everywhere,
)


def test_an_actor_that_may_is_restarted_with_its_channels_open() -> None:
    async def scenario() -> None:
        into: list[int] = []

        async def flaky(numbers: Receiver[int], out: Sender[int]) -> None:
            async for number in numbers:
                await out.send(number)
                if number % 3 == 2:
                    raise Boom

        numbers: Channel[int] = Channel("numbers", 1)
        same: Channel[int] = Channel("same", 1)
        program = Program("flaky")
        program.actor("source", count_to, 9, numbers.sender())
        program.actor("flaky", flaky, numbers.receiver(), same.sender(), restarts=Restarts(3))
        program.drain("logger", collect, same.receiver(), into)
        await program.run()
        assert into == list(range(9))

    everywhere(scenario)


def test_restarts_are_bounded_within_a_window() -> None:
    notes: list[str] = []

    async def program(pauses: list[float], restarts: Restarts) -> int:
        attempts = 0

        async def flaky() -> None:
            nonlocal attempts
            attempts += 1
            if attempts > len(pauses):
                return
            await anyio.sleep(pauses[attempts - 1])
            raise Boom(f"attempt {attempts}")

        program = Program("flaky")
        program.actor("flaky", flaky, restarts=restarts)
        try:
            await program.run()
        except ActorsFailed as failed:
            notes.extend(failed.exceptions[0].__notes__)
            return -attempts
        return attempts

    two_in_ten = Restarts(2, within=10)
    assert simulate(program, [1, 1], two_in_ten).unwrap() == 3, "two failures, two restarts"
    assert simulate(program, [1, 1, 1], two_in_ten).unwrap() == -3, (
        "the third failure within ten seconds is one too many"
    )
    assert simulate(program, [6, 6, 6, 6, 6, 6], two_in_ten).unwrap() == 7, "rare failures never add up"
    assert simulate(program, [1, 1, 9.5], two_in_ten).unwrap() == 4, (
        "restarts at 1, 2 and 11.5: the first has left the window"
    )
    assert simulate(program, [1, 1, 8], two_in_ten).unwrap() == -3, "restarts at 1 and 2, failure at 10"
    assert notes == 2 * ["after 2 restarts within 10 s", "in actor 'flaky'"]


def test_only_the_failures_named_are_worth_a_restart() -> None:
    async def program(errors: list[Exception]) -> str:
        waiting = list(errors)

        async def flaky() -> None:
            if waiting:
                raise waiting.pop(0)

        program = Program("flaky")
        program.actor("flaky", flaky, restarts=Restarts(10, on=(Boom, OSError)))
        try:
            await program.run()
        except ActorsFailed as failed:
            return repr(failed.exceptions[0])
        return "finished"

    assert simulate(program, [Boom(), FileNotFoundError(), Boom()]).unwrap() == "finished"
    assert simulate(program, [Boom(), LookupError("other")]).unwrap() == "LookupError('other')"
    both = ExceptionGroup("two", [Boom(), OSError()])
    assert simulate(program, [both]).unwrap() == "finished"
    mixed = ExceptionGroup("two", [Boom(), LookupError()])
    assert simulate(program, [mixed]).unwrap() == repr(mixed)


def test_what_fails_while_cancelled_is_not_restarted() -> None:
    async def scenario() -> None:
        starts: list[str] = []

        async def fails_in_cleanup() -> None:
            starts.append("start")
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom("in cleanup")

        async def fails() -> None:
            await anyio.wait_all_tasks_blocked()
            raise Boom("first")

        program = Program("restarts")
        program.actor("a", fails_in_cleanup, restarts=Restarts(5))
        program.actor("b", fails)
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        assert starts == ["start"]
        assert [str(error) for error in failed.value.exceptions] == ["first", "in cleanup"]

    everywhere(scenario)


def test_a_finished_consumer_is_no_reason_to_restart() -> None:
    async def scenario() -> None:
        starts: list[str] = []

        async def source(out: Sender[int]) -> None:
            starts.append("start")
            await count_to(10**9, out)

        async def take(receiver: Receiver[int]) -> None:
            await receiver.receive()

        numbers: Channel[int] = Channel("numbers", 1)
        program = Program("restarts")
        program.actor("source", source, numbers.sender(), restarts=Restarts(5))
        program.actor("consumer", take, numbers.receiver())
        await program.run()
        assert starts == ["start"]

    everywhere(scenario)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1, "within": 0}])
def test_restarts_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Restarts(**wrong)
