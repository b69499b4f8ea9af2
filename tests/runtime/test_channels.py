"""Channels: their record, how they end, and that nothing is lost or doubled."""

from __future__ import annotations

import gc
from collections import Counter

import anyio
import anyio.lowlevel
import attrs
import pytest
import trio

from engine.runtime import Channel, ChannelStatistics, ConsumerFinished, Receiver, Sender, simulate
from engine.runtime.testing import every_cancellation, schedules


async def _send_all(sender: Sender[int], items: range, pause: float = 0) -> None:
    for item in items:
        if pause:
            await anyio.sleep(pause)
        await sender.send(item)
    sender.close()


async def _receive_all(receiver: Receiver[int], into: list[int], pause: float = 0) -> None:
    async for item in receiver:
        into.append(item)
        if pause:
            await anyio.sleep(pause)
    receiver.close()


@pytest.mark.anyio
async def test_an_item_sent_is_received_in_order() -> None:
    channel: Channel[int] = Channel("numbers", 2)
    received: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_send_all, channel.sender(), range(10))
        group.start_soon(_receive_all, channel.receiver(), received)
    assert received == list(range(10))
    record = channel.statistics()
    assert record == ChannelStatistics(
        name="numbers",
        capacity=2,
        depth=0,
        peak_depth=record.peak_depth,
        sent=10,
        received=10,
        send_blocked=record.send_blocked,
        receive_blocked=record.receive_blocked,
        open_senders=0,
        open_receivers=0,
    )
    assert record.peak_depth <= 2


def test_blocked_times_name_the_slow_side_exactly() -> None:
    async def program(send_pause: float, receive_pause: float) -> ChannelStatistics:
        channel: Channel[int] = Channel("numbers", 1)
        async with anyio.create_task_group() as group:
            group.start_soon(_send_all, channel.sender(), range(5), send_pause)
            group.start_soon(_receive_all, channel.receiver(), [], receive_pause)
        return channel.statistics()

    slow_consumer = simulate(program, 0, 8).unwrap()
    # Items 0 and 1 leave at 0 (one is held, one waits); 2 to 4 wait for the receiver at 8, 16 and 24.
    assert slow_consumer.send_blocked == 24
    assert slow_consumer.receive_blocked == 0
    assert slow_consumer.peak_depth == 1

    slow_producer = simulate(program, 8, 0).unwrap()
    assert slow_producer.send_blocked == 0
    assert slow_producer.receive_blocked == 40
    assert slow_producer.peak_depth == 0, "every item went straight to the waiting receiver"


def test_a_wait_that_goes_on_counts_up_to_now() -> None:
    async def program() -> list[tuple[float, float]]:
        full: Channel[int] = Channel("full", 0)
        empty: Channel[int] = Channel("empty", 0)
        receiver, sender = full.receiver(), empty.sender()
        seen = []
        async with anyio.create_task_group() as group:
            for end in (full.sender(), full.sender()):
                group.start_soon(_send_all, end, range(1))
            group.start_soon(_receive_all, empty.receiver(), [])
            for _ in range(3):
                await anyio.sleep(10)
                seen.append((full.statistics().send_blocked, empty.statistics().receive_blocked))
            sender.close()
            assert [item async for item in receiver] == [0, 0]
        receiver.close()
        return seen

    assert simulate(program).unwrap() == [(20, 10), (40, 20), (60, 30)]


def test_depth_and_peak_depth() -> None:
    async def program() -> list[tuple[int, int]]:
        channel: Channel[int] = Channel("numbers", 4)
        sender, receiver = channel.sender(), channel.receiver()
        seen = []
        for number in range(3):
            await sender.send(number)
            seen.append((channel.statistics().depth, channel.statistics().peak_depth))
        await receiver.receive()
        await receiver.receive()
        await sender.send(9)
        seen.append((channel.statistics().depth, channel.statistics().peak_depth))
        sender.close()
        receiver.close()
        return seen

    assert simulate(program).unwrap() == [(1, 1), (2, 2), (3, 3), (2, 3)]


def test_peak_depth_reaches_the_capacity_when_senders_block_and_never_more() -> None:
    async def program(capacity: int) -> int:
        channel: Channel[int] = Channel("numbers", capacity)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(_send_all, channel.sender(), range(5))
            group.start_soon(_receive_all, channel.receiver(), [], 1.0)
        return channel.statistics().peak_depth

    for capacity in (0, 1, 3):
        assert [report.unwrap() for report in schedules(program, capacity, count=10)] == [capacity] * 10


@pytest.mark.anyio
@pytest.mark.parametrize("capacity", [0, 1, 3])
async def test_what_was_sent_before_the_close_is_still_received(capacity: int) -> None:
    channel: Channel[int] = Channel("numbers", capacity)
    sender, receiver = channel.sender(), channel.receiver()
    for number in range(capacity):
        await sender.send(number)
    sender.close()
    assert [item async for item in receiver] == list(range(capacity))
    with pytest.raises(anyio.EndOfStream):
        await receiver.receive()
    with pytest.raises(anyio.EndOfStream):
        receiver.receive_nowait()
    receiver.close()


@pytest.mark.anyio
async def test_a_channel_ends_when_its_last_sender_is_closed() -> None:
    channel: Channel[int] = Channel("numbers", 4)
    first, receiver = channel.sender(), channel.receiver()
    second = first.clone()
    first.close()
    third = second.clone()  # the very first end is closed by now
    second.close()
    await third.send(1)
    third.close()
    third.close()
    assert [item async for item in receiver] == [1]
    with pytest.raises(RuntimeError, match="'numbers': all its senders are closed"):
        channel.sender()
    receiver.close()
    assert channel.statistics().open_senders == channel.statistics().open_receivers == 0


@pytest.mark.anyio
async def test_senders_are_told_when_the_last_receiver_is_closed() -> None:
    channel: Channel[int] = Channel("numbers", 4)
    sender, first = channel.sender(), channel.receiver()
    second = first.clone()
    first.close()
    await sender.send(1)
    assert not channel.finished.is_set()
    second.close()
    assert channel.finished.is_set()
    for _ in range(2):
        with pytest.raises(ConsumerFinished, match="numbers"):
            await sender.send(2)
    with pytest.raises(ConsumerFinished, match="numbers"):
        sender.send_nowait(2)
    with pytest.raises(RuntimeError, match="'numbers': all its receivers are closed"):
        channel.receiver()
    sender.close()


@pytest.mark.anyio
async def test_a_blocked_sender_is_told_when_the_consumer_finishes() -> None:
    channel: Channel[int] = Channel("numbers", 0)
    sender, receiver = channel.sender(), channel.receiver()
    told: list[str] = []

    async def send() -> None:
        try:
            await sender.send(1)
        except ConsumerFinished as news:
            told.append(str(news))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        receiver.close()
    sender.close()
    assert told == ["numbers"]
    assert channel.statistics().sent == 0


@pytest.mark.anyio
async def test_at_once_or_not_at_all() -> None:
    channel: Channel[int] = Channel("numbers", 1)
    sender, receiver = channel.sender(), channel.receiver()
    with pytest.raises(anyio.WouldBlock):
        receiver.receive_nowait()
    sender.send_nowait(1)
    with pytest.raises(anyio.WouldBlock):
        sender.send_nowait(2)
    assert receiver.receive_nowait() == 1
    assert attrs.astuple(channel.statistics())[2:6] == (0, 1, 1, 1)
    sender.close()
    receiver.close()


@pytest.mark.anyio
async def test_send_and_receive_are_checkpoints_even_when_they_need_not_wait() -> None:
    channel: Channel[int] = Channel("numbers", 1)
    sender, receiver = channel.sender(), channel.receiver()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await sender.send(1)
    assert scope.cancelled_caught
    assert channel.statistics().depth == 0, "a cancelled send has not sent"
    await sender.send(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await receiver.receive()
    assert scope.cancelled_caught
    assert await receiver.receive() == 1, "a cancelled receive has taken nothing"
    sender.close()
    receiver.close()


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="channel 'jobs': capacity must be 0 or more, got -1"):
        Channel("jobs", -1)


def test_built_outside_an_event_loop_used_inside() -> None:
    for backend in ("asyncio", "trio"):
        channel: Channel[int] = Channel("numbers", 0)
        received: list[int] = []

        async def main(channel: Channel[int] = channel, received: list[int] = received) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(_send_all, channel.sender(), range(3))
                group.start_soon(_receive_all, channel.receiver(), received)

        anyio.run(main, backend=backend)
        assert received == [0, 1, 2]
        assert channel.finished.is_set()
        assert channel.statistics().sent == 3


def test_a_channel_nobody_used_needs_no_closing() -> None:
    Channel("unused", 3)
    gc.collect()  # an unclosed stream would warn here, and a warning fails the test


@pytest.mark.parametrize("capacity", [0, 1, 4])
def test_many_senders_and_receivers_lose_and_double_nothing(capacity: int) -> None:
    async def program() -> tuple[list[list[int]], ChannelStatistics]:
        channel: Channel[int] = Channel("numbers", capacity)
        received: list[list[int]] = [[], [], []]
        async with anyio.create_task_group() as group:
            for sender in range(4):
                group.start_soon(_send_all, channel.sender(), range(10 * sender, 10 * sender + 10))
            for into in received:
                group.start_soon(_receive_all, channel.receiver(), into)
        return received, channel.statistics()

    orders = set()
    for report in schedules(program, count=60):
        received, record = report.unwrap()
        everything = [item for into in received for item in into]
        assert sorted(everything) == list(range(40))
        for into in received:
            for sender in range(4):
                own = [item for item in into if item // 10 == sender]
                assert own == sorted(own), "what one sender sends arrives in its order"
        assert (record.sent, record.received, record.depth) == (40, 40, 0)
        orders.add(tuple(everything))
    assert len(orders) > 30, "the seeds try different interleavings"


@pytest.mark.parametrize("capacity", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cancelled_anywhere_every_item_is_in_one_place(capacity: int, seed: int) -> None:
    """Whatever is cancelled when: an item is with its sender, in the channel, or with one receiver."""
    survivors: Counter[str] = Counter()
    record: dict[str, list[int]] = {}

    async def program() -> None:
        record.update(sent=[], received=[], left=[])
        channel: Channel[int] = Channel("numbers", capacity)
        senders = [channel.sender() for _ in range(3)]
        receivers = [channel.receiver() for _ in range(2)]
        leftover = channel.receiver()

        async def send(index: int) -> None:
            for item in range(10 * index, 10 * index + 4):
                await senders[index].send(item)
                record["sent"].append(item)

        async def receive(receiver: Receiver[int]) -> None:
            while True:
                try:
                    item = await receiver.receive()
                except anyio.EndOfStream:
                    return
                record["received"].append(item)

        try:
            async with anyio.create_task_group() as consumers:
                for receiver in receivers:
                    consumers.start_soon(receive, receiver)
                async with anyio.create_task_group() as producers:
                    for index in range(3):
                        producers.start_soon(send, index)
                for sender in senders:
                    sender.close()
        finally:
            record["left"] += [leftover.receive_nowait() for _ in range(channel.statistics().depth)]
            for end in (*senders, *receivers, leftover):
                end.close()

    for report in every_cancellation(program, seed=seed, max_steps=10_000):
        report.unwrap()
        survivors["cancelled" if report.cancelled else "finished"] += 1
        _check_in_one_place(record)
    assert survivors["cancelled"] > 20
    assert survivors["finished"] >= 1


def _check_in_one_place(record: dict[str, list[int]]) -> None:
    arrived = record["received"] + record["left"]
    assert len(arrived) == len(set(arrived)), f"doubled: {record}"
    assert set(record["sent"]) == set(arrived), f"lost, or there without having been sent: {record}"


@pytest.mark.parametrize("capacity", [0, 2])
def test_receivers_that_come_and_go_lose_nothing(capacity: int) -> None:
    """Receivers with timeouts, under many schedules: what one gives up waiting for goes to another."""

    async def program() -> list[int]:
        channel: Channel[int] = Channel("numbers", capacity)
        received: list[int] = []

        async def receive(receiver: Receiver[int], patience: float) -> None:
            while True:
                with anyio.move_on_after(patience):
                    try:
                        received.append(await receiver.receive())
                    except anyio.EndOfStream:
                        receiver.close()
                        return

        async def send(sender: Sender[int], items: range) -> None:
            for item in items:
                await anyio.sleep(1)
                await sender.send(item)
            sender.close()

        async with anyio.create_task_group() as group:
            for patience in (0.5, 1, 1, 2):  # many give up at the very moment at which an item comes
                group.start_soon(receive, channel.receiver(), patience)
            for index in range(2):
                group.start_soon(send, channel.sender(), range(10 * index, 10 * index + 10))
        return received

    for report in schedules(program, count=60):
        assert sorted(report.unwrap()) == list(range(20))


def test_waiting_costs_no_wakeups() -> None:
    async def program(hours: float) -> int:
        steps = 0

        class Count(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal steps
                steps += 1

        channel: Channel[int] = Channel("numbers", 1)
        full: Channel[int] = Channel("full", 0)
        sender, receiver = channel.sender(), full.receiver()
        full_senders = [full.sender() for _ in range(5)]
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(_receive_all, channel.receiver(), [])
            for end in full_senders:
                group.start_soon(end.send, 1)
            await anyio.wait_all_tasks_blocked()
            count = Count()
            trio.lowlevel.add_instrument(count)
            await anyio.sleep(3600 * hours)
            trio.lowlevel.remove_instrument(count)
            sender.close()
            for _ in full_senders:
                await receiver.receive()
        receiver.close()
        for end in full_senders:
            end.close()
        return steps

    assert simulate(program, 10).unwrap() == 1, "only the sleeper itself wakes up"
