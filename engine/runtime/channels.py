"""Bounded channels between actors, with the statistics that name a bottleneck.

A channel whose senders were blocked has a slow consumer; one whose receivers were blocked has a slow producer. Closing is the protocol:
when the last sender is closed, receivers drain what is left and end; when the last receiver is closed, `send` raises `ConsumerFinished`,
which a program takes as a quiet stop.

Cancellation neither loses nor doubles an item: a `send` that is cancelled has not sent, a `receive` that is cancelled has taken nothing.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from engine.runtime.waiting import WaitingTime

T = TypeVar("T")


class ConsumerFinished(Exception):
    """Nobody will receive what is sent: the consumer has finished. Not a failure."""


@attrs.frozen
class ChannelStatistics:
    """A channel's record at one moment. Times are seconds, summed over senders or receivers; waits that go on count up to now."""

    name: str
    capacity: int
    depth: int
    """Items sent and waiting to be received."""
    peak_depth: int
    """Most items that ever waited, at most the capacity."""
    sent: int
    """Sends that returned."""
    received: int
    """Receives that returned."""
    send_blocked: float
    receive_blocked: float
    open_senders: int
    open_receivers: int


class Channel(Generic[T]):
    """A bounded queue from senders to receivers. Every end handed out must be closed: a `Program` does so when its actor finishes."""

    def __init__(self, name: str, capacity: int) -> None:
        """`capacity`: most items that wait; 0: a `send` returns when its item is received."""
        if capacity < 0:
            raise ValueError(f"channel '{name}': capacity must be 0 or more, got {capacity}")
        self.name = name
        self.capacity = capacity
        self.finished = anyio.Event()
        """Set when the last receiver is closed."""
        self._streams: tuple[MemoryObjectSendStream[T], MemoryObjectReceiveStream[T]] | None = None
        self._open_senders: dict[MemoryObjectSendStream[T], None] = {}
        self._open_receivers: dict[MemoryObjectReceiveStream[T], None] = {}
        self._senders = 0
        self._receivers = 0
        self._sent = 0
        self._received = 0
        self._peak_depth = 0
        self._send_waiting = WaitingTime()
        self._receive_waiting = WaitingTime()

    def sender(self) -> Sender[T]:
        """A sending end of its own. Raises RuntimeError when all senders were closed: what has ended cannot go on."""
        if not self._senders:
            stream = self._both()[0]
        elif self._open_senders:
            stream = next(iter(self._open_senders)).clone()
        else:
            raise RuntimeError(
                f"channel '{self.name}': all its senders are closed, so it has ended and takes no new one"
            )
        self._senders += 1
        self._open_senders[stream] = None
        return Sender(self, stream)

    def receiver(self) -> Receiver[T]:
        """A receiving end of its own; items go to whichever receiver is there first. Raises RuntimeError when all receivers were closed."""
        if not self._receivers:
            stream = self._both()[1]
        elif self._open_receivers:
            stream = next(iter(self._open_receivers)).clone()
        else:
            raise RuntimeError(
                f"channel '{self.name}': all its receivers are closed, so its senders have been told to stop"
            )
        self._receivers += 1
        self._open_receivers[stream] = None
        return Receiver(self, stream)

    @property
    def ends(self) -> tuple[int, int]:
        """How many senders and receivers were handed out."""
        return self._senders, self._receivers

    def statistics(self) -> ChannelStatistics:
        """The record so far."""
        return ChannelStatistics(
            name=self.name,
            capacity=self.capacity,
            depth=self._depth(),
            peak_depth=self._peak_depth,
            sent=self._sent,
            received=self._received,
            send_blocked=self._send_waiting.seconds(),
            receive_blocked=self._receive_waiting.seconds(),
            open_senders=len(self._open_senders),
            open_receivers=len(self._open_receivers),
        )

    def close_unclaimed(self) -> None:
        """Closes the side of which no end was ever handed out, so that nothing is left open when a program could not be run."""
        if self._streams is None:
            return
        if not self._senders:
            self._streams[0].close()
        if not self._receivers:
            self._streams[1].close()

    def _both(self) -> tuple[MemoryObjectSendStream[T], MemoryObjectReceiveStream[T]]:
        if self._streams is None:  # made when the first end is wanted: a channel that nobody uses needs no closing
            send_stream, receive_stream = anyio.create_memory_object_stream[T](self.capacity)
            self._streams = send_stream, receive_stream
        return self._streams

    def _depth(self) -> int:
        return 0 if self._streams is None else self._streams[0].statistics().current_buffer_used

    def _count_sent(self) -> None:
        self._sent += 1
        if self._peak_depth < self.capacity:
            self._peak_depth = max(self._peak_depth, self._depth())

    def _sender_closed(self, stream: MemoryObjectSendStream[T]) -> None:
        self._open_senders.pop(stream, None)

    def _receiver_closed(self, stream: MemoryObjectReceiveStream[T]) -> None:
        self._open_receivers.pop(stream, None)
        if not self._open_receivers:
            self.finished.set()


class Sender(Generic[T]):
    """The sending end of a channel."""

    def __init__(self, channel: Channel[T], stream: MemoryObjectSendStream[T]) -> None:
        self.channel = channel
        self._stream = stream

    async def send(self, item: T) -> None:
        """Waits until there is room. Raises ConsumerFinished when nobody will receive."""
        await anyio.lowlevel.checkpoint()  # before the item is sent: a cancelled send has not sent
        try:
            self.send_nowait(item)
        except anyio.WouldBlock:
            await self._send_when_there_is_room(item)

    async def _send_when_there_is_room(self, item: T) -> None:
        channel = self.channel
        wait = channel._send_waiting.begin()  # noqa: SLF001
        try:
            await self._stream.send(item)
        except anyio.BrokenResourceError:
            raise ConsumerFinished(channel.name) from None
        else:
            channel._count_sent()  # noqa: SLF001
        finally:
            channel._send_waiting.end(wait)  # noqa: SLF001

    def send_nowait(self, item: T) -> None:
        """Sends at once. Raises anyio.WouldBlock when full, ConsumerFinished when nobody will receive."""
        try:
            self._stream.send_nowait(item)
        except anyio.BrokenResourceError:
            raise ConsumerFinished(self.channel.name) from None
        self.channel._count_sent()  # noqa: SLF001

    def clone(self) -> Sender[T]:
        """Another end, to be closed by whoever gets it."""
        return self.channel.sender()

    def close(self) -> None:
        """Gives the end up. When it was the last, receivers drain and end."""
        self._stream.close()
        self.channel._sender_closed(self._stream)  # noqa: SLF001


class Receiver(Generic[T]):
    """The receiving end of a channel; iterate over it."""

    def __init__(self, channel: Channel[T], stream: MemoryObjectReceiveStream[T]) -> None:
        self.channel = channel
        self._stream = stream

    async def receive(self) -> T:
        """The next item. Raises anyio.EndOfStream when all senders are closed and nothing is left."""
        await anyio.lowlevel.checkpoint()  # before an item is taken: a cancelled receive has taken nothing
        try:
            return self.receive_nowait()
        except anyio.WouldBlock:
            return await self._receive_when_sent()

    async def _receive_when_sent(self) -> T:
        channel = self.channel
        wait = channel._receive_waiting.begin()  # noqa: SLF001
        try:
            item = await self._stream.receive()
        finally:
            channel._receive_waiting.end(wait)  # noqa: SLF001
        channel._received += 1  # noqa: SLF001
        return item

    def receive_nowait(self) -> T:
        """The next item at once. Raises anyio.WouldBlock or anyio.EndOfStream."""
        item = self._stream.receive_nowait()
        self.channel._received += 1  # noqa: SLF001
        return item

    def clone(self) -> Receiver[T]:
        """Another end, to be closed by whoever gets it."""
        return self.channel.receiver()

    def __aiter__(self) -> Receiver[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Gives the end up. When it was the last, senders get ConsumerFinished."""
        self._stream.close()
        self.channel._receiver_closed(self._stream)  # noqa: SLF001
