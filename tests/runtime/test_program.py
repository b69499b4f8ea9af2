"""Programs: how they are declared, end quietly, are embedded, and idle."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from engine.runtime import ActorsFailed, Channel, Program, Receiver, Restarts, Sender, simulate
from engine.runtime.testing import schedules
from tests.runtime.pipelines import (
    SCHEDULES,
    Boom,
    all_closed,
    collect,
    count_to,
    double,
    everywhere,
    idle,
    pipeline,
)


def test_a_program_stops_from_the_source_downward_and_the_logger_loses_nothing() -> None:
    async def scenario() -> None:
        into: list[int] = []
        program = pipeline(into)
        await program.run()
        assert into == [2 * number for number in range(10)]
        assert all_closed(program)
        assert [channel.name for channel in program.channels] == ["numbers", "doubled"]

    everywhere(scenario)


def test_actors_stop_in_order_sources_first_the_logger_last() -> None:
    async def scenario() -> list[str]:
        class Record:
            def __init__(self) -> None:
                self.ended: list[str] = []

            def span(self, track: str, name: str, start: float, end: float, **args: object) -> None:
                self.ended.append(name)

            def instant(self, *args: Any, **more: Any) -> None: ...

            def counter(self, *args: Any, **more: Any) -> None: ...

        record = Record()
        await pipeline([], tracer=record).run()
        assert record.ended == ["source", "doubler", "logger"]

    everywhere(scenario)


def test_a_consumer_that_finishes_first_stops_its_producers_quietly() -> None:
    async def take_three(numbers: Receiver[int], out: Sender[int]) -> None:
        for _ in range(3):
            await out.send(await numbers.receive())

    async def scenario() -> None:
        into: list[int] = []
        program = pipeline(into, limit=10**9, doubler=take_three)
        await program.run()
        assert into == [0, 1, 2]
        assert all_closed(program)

    everywhere(scenario)


def test_a_quiet_stop_from_inside_an_actors_own_task_groups() -> None:
    async def in_groups(limit: int, out: Sender[int]) -> None:
        async with anyio.create_task_group() as outer:
            for _ in range(2):
                outer.start_soon(count_to, limit, out)
            async with anyio.create_task_group() as inner:
                inner.start_soon(count_to, limit, out)
                inner.start_soon(idle)

    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        program = Program("quiet")

        async def take(receiver: Receiver[int]) -> None:
            await receiver.receive()

        program.actor("source", in_groups, 10**9, numbers.sender())
        program.actor("consumer", take, numbers.receiver())
        await program.run()
        assert all_closed(program)

    everywhere(scenario)


def test_a_real_error_beside_a_quiet_stop_is_a_failure() -> None:
    async def mixed(out: Sender[int]) -> None:
        async def fails_when_told() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom("in cleanup")

        async with anyio.create_task_group() as group:
            group.start_soon(count_to, 10**9, out)
            group.start_soon(fails_when_told)

    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        program = Program("mixed")

        async def take(receiver: Receiver[int]) -> None:
            await receiver.receive()

        program.actor("source", mixed, numbers.sender())
        program.actor("consumer", take, numbers.receiver())
        with pytest.raises(ActorsFailed) as failed:
            await program.run()
        assert [repr(error) for error in failed.value.exceptions] == ["Boom('in cleanup')"]
        assert "in actor 'source'" in failed.value.exceptions[0].__notes__

    everywhere(scenario)


@pytest.mark.parametrize("listens", [False, True])
def test_an_actor_that_feeds_a_finished_consumer_is_stopped_without_sending(listens: bool) -> None:
    """`feeds=`: a source that waits an hour for its next item does not keep the run alive for that hour."""

    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        out = numbers.sender()
        cleaned: list[str] = []

        async def slow_source(out: Sender[int]) -> None:
            try:
                await out.send(0)
                await anyio.sleep(3600)
                await out.send(1)
            finally:
                cleaned.append("source")

        async def take(receiver: Receiver[int]) -> None:
            await receiver.receive()

        program = Program("feeds")
        program.actor("source", slow_source, out, feeds=out if listens else None)
        program.actor("consumer", take, numbers.receiver())
        began = anyio.current_time()
        await program.run()
        assert cleaned == ["source"]
        assert anyio.current_time() - began == (0 if listens else 3600)

    for report in schedules(scenario, count=SCHEDULES):
        report.unwrap()


def test_feeds_closes_the_end_it_names() -> None:
    class Source:
        def __init__(self, out: Sender[int]) -> None:
            self.out = out

        async def run(self) -> None:
            await self.out.send(1)

    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        into: list[int] = []
        source = Source(numbers.sender())
        program = Program("hidden end")
        program.actor("source", source.run, feeds=source.out)
        program.actor("logger", collect, numbers.receiver(), into)
        await program.run()
        assert into == [1]

    everywhere(scenario)


def test_owned_ends_and_ends_in_lists_are_closed_too() -> None:
    async def scenario() -> None:
        channels: list[Channel[int]] = [Channel(f"numbers {index}", 1) for index in range(3)]
        into: list[int] = []

        async def fan_out(out: list[Sender[int]]) -> None:
            for number, sender in enumerate(out):
                await sender.send(number)
            await hidden.send(2)

        hidden = channels[2].sender()
        program = Program("fan")
        program.actor("source", fan_out, [channel.sender() for channel in channels[:2]], owns=[hidden])
        for index, channel in enumerate(channels):
            program.actor(f"sink {index}", collect, channel.receiver(), into)
        await program.run()
        assert sorted(into) == [0, 1, 2]
        assert len(program.channels) == 3
        assert all_closed(program)

    everywhere(scenario)


@pytest.mark.anyio
async def test_a_channel_with_one_side_missing_is_refused_before_anything_runs() -> None:
    for side in ("receiver", "sender"):
        numbers: Channel[int] = Channel("numbers", 1)
        ran: list[str] = []

        async def actor(end: Any, ran: list[str] = ran) -> None:
            ran.append("ran")

        program = Program("half")
        program.actor("actor", actor, numbers.sender() if side == "receiver" else numbers.receiver())
        with pytest.raises(ValueError, match=f"program 'half': channel 'numbers' has no actor with a {side}"):
            await program.run()
        assert not ran
        assert all_closed(program)


def test_two_actors_of_one_name_are_refused() -> None:
    program = Program("names")
    program.actor("a", idle)
    with pytest.raises(ValueError, match="program 'names': there is already an actor 'a'"):
        program.drain("a", idle)


@pytest.mark.anyio
async def test_a_program_runs_once() -> None:
    program = pipeline([])
    await program.run()
    with pytest.raises(RuntimeError, match="program 'pipeline' has been run already"):
        await program.run()
    with pytest.raises(RuntimeError, match="actor 'late' comes too late"):
        program.actor("late", idle)


@pytest.mark.anyio
async def test_a_program_of_nothing_ends() -> None:
    with anyio.fail_after(5):
        await Program("empty").run()


@pytest.mark.anyio
async def test_what_is_no_coroutine_function_is_a_failure_of_its_actor() -> None:
    program = Program("wrong")
    program.actor("plain", lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ActorsFailed, match="actor 'plain'"):
        await program.run()


def test_within_a_task_group_of_the_host() -> None:
    """The host goes on after the program has ended; its own failure cancels the program, and the other way round."""

    async def scenario() -> None:
        into: list[int] = []
        program = pipeline(into)
        seen: list[int] = []
        async with anyio.create_task_group() as group:
            group.start_soon(program.run)
            group.start_soon(anyio.sleep, 0)
        seen += into
        assert seen == [2 * number for number in range(10)]

        endless = pipeline([], limit=10**9)
        with pytest.raises(ExceptionGroup) as failed:
            async with anyio.create_task_group() as group:
                group.start_soon(endless.run)
                await anyio.lowlevel.checkpoint()
                raise Boom("host")
        assert [repr(error) for error in failed.value.exceptions] == ["Boom('host')"]
        assert all_closed(endless)

        async def fails(numbers: Receiver[int], out: Sender[int]) -> None:
            raise Boom("actor")

        failing = pipeline([], doubler=fails)
        with pytest.raises(ExceptionGroup) as failed:
            async with anyio.create_task_group() as group:
                group.start_soon(failing.run)
                await anyio.sleep_forever()
        assert [type(error) for error in failed.value.exceptions] == [ActorsFailed]

    everywhere(scenario)


def test_a_program_within_an_actor_of_another() -> None:
    async def scenario() -> None:
        into: list[int] = []

        async def inner(out: Sender[int]) -> None:
            program = pipeline(into, limit=3)
            await program.run()
            await out.send(sum(into))

        outer: Channel[int] = Channel("outer", 1)
        total: list[int] = []
        program = Program("outer")
        program.actor("inner", inner, outer.sender())
        program.drain("logger", collect, outer.receiver(), total)
        await program.run()
        assert total == [6]

    everywhere(scenario)


def test_an_end_that_stays_outside_connects_the_program_to_its_host() -> None:
    async def scenario() -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        doubled: Channel[int] = Channel("doubled", 1)
        program = Program("embedded")
        program.actor("doubler", double, numbers.receiver(), doubled.sender())
        sender, receiver = numbers.sender(), doubled.receiver()
        async with anyio.create_task_group() as group:
            group.start_soon(program.run)
            for number in range(3):
                await sender.send(number)
                assert await receiver.receive() == 2 * number
            sender.close()
            assert [item async for item in receiver] == []
            receiver.close()

    everywhere(scenario)


def test_no_task_is_left_running() -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async def scenario() -> None:
        async def fails(numbers: Receiver[int], out: Sender[int]) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(idle)
                async for number in numbers:
                    await out.send(number)
                    if number == 3:
                        raise Boom

        before = tasks()
        with pytest.raises(ActorsFailed):
            await pipeline([], limit=10**9, doubler=fails).run()
        assert tasks() == before

    for report in schedules(scenario, count=SCHEDULES, horizon=1e6):
        report.unwrap()


def test_a_program_in_which_everything_waits_uses_no_cpu() -> None:
    """Task steps over an hour and over a day of virtual time: the same few. No polling anywhere."""

    async def program(hours: float) -> None:
        numbers: Channel[int] = Channel("numbers", 1)
        out = numbers.sender()
        results: Channel[int] = Channel("results", 0)

        async def rare(out: Sender[int]) -> None:
            for number in range(2):
                await anyio.sleep(1800 * hours)
                await out.send(number)

        program = Program("idle")
        program.actor("source", rare, out, feeds=out)
        for index in range(8):
            program.actor(f"worker {index}", double, numbers.receiver(), results.sender(), restarts=Restarts(3))
        program.drain("logger", collect, results.receiver(), [])
        await program.run()

    hour, day = simulate(program, 1), simulate(program, 24)
    hour.unwrap()
    assert (hour.seconds, day.seconds) == (3600, 24 * 3600)
    assert hour.steps == day.steps < 150
