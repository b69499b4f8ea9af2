"""Bounded channels between actors, with the statistics that name a bottleneck.

A channel whose senders were blocked has a slow consumer; one whose receivers were blocked has a slow producer. Closing is the protocol:
when the last sender is closed, receivers drain what is left and end; when the last receiver is closed, `send` raises `ConsumerFinished`,
which a program takes as a quiet stop.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


class ConsumerFinished(Exception):
    """Nobody will receive what is sent: the consumer has finished. Not a failure."""


@attrs.frozen
class ChannelStatistics:
    """A channel's record at one moment. Times are seconds, summed over senders or receivers."""

    name: str
    capacity: int
    depth: int
    peak_depth: int
    sent: int
    received: int
    send_blocked: float
    receive_blocked: float
    open_senders: int
    open_receivers: int


class Channel(Generic[T]):
    """A bounded queue from senders to receivers. Every end handed out must be closed: a `Program` does so when its actor finishes."""

    def __init__(self, name: str, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"channel '{name}': capacity must be 0 or more, got {capacity}")
        self.name = name
        self.capacity = capacity
        self.finished = anyio.Event()
        """Set when the last receiver is closed."""
        self._send_stream, self._receive_stream = anyio.create_memory_object_stream[T](capacity)
        self._senders = 0
        self._receivers = 0
        self._sent = 0
        self._received = 0
        self._peak_depth = 0
        self._send_blocked = 0.0
        self._receive_blocked = 0.0

    def sender(self) -> Sender[T]:
        """A sending end of its own."""
        stream = self._send_stream if self._senders == 0 else self._send_stream.clone()
        self._senders += 1
        return Sender(self, stream)

    def receiver(self) -> Receiver[T]:
        """A receiving end of its own; items go to whichever receiver is there first."""
        stream = self._receive_stream if self._receivers == 0 else self._receive_stream.clone()
        self._receivers += 1
        return Receiver(self, stream)

    @property
    def ends(self) -> tuple[int, int]:
        """How many senders and receivers were handed out."""
        return self._senders, self._receivers

    def statistics(self) -> ChannelStatistics:
        """The record so far."""
        stream = self._send_stream.statistics()
        return ChannelStatistics(
            name=self.name,
            capacity=self.capacity,
            depth=stream.current_buffer_used,
            peak_depth=self._peak_depth,
            sent=self._sent,
            received=self._received,
            send_blocked=self._send_blocked,
            receive_blocked=self._receive_blocked,
            open_senders=stream.open_send_streams,
            open_receivers=stream.open_receive_streams,
        )

    def _count_sent(self) -> None:
        self._sent += 1
        depth = self._sent - self._received
        if depth > self._peak_depth:
            self._peak_depth = min(depth, self.capacity)


class Sender(Generic[T]):
    """The sending end of a channel."""

    def __init__(self, channel: Channel[T], stream: MemoryObjectSendStream[T]) -> None:
        self.channel = channel
        self._stream = stream

    async def send(self, item: T) -> None:
        """Waits until there is room. Raises ConsumerFinished when nobody will receive."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            self._stream.send_nowait(item)
        except anyio.WouldBlock:
            await self._send_blocked(item)
        except anyio.BrokenResourceError:
            raise ConsumerFinished(self.channel.name) from None
        else:
            self.channel._count_sent()  # noqa: SLF001
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async def _send_blocked(self, item: T) -> None:
        began = anyio.current_time()
        try:
            await self._stream.send(item)
        except anyio.BrokenResourceError:
            raise ConsumerFinished(self.channel.name) from None
        else:
            self.channel._count_sent()  # noqa: SLF001
        finally:
            self.channel._send_blocked += anyio.current_time() - began  # noqa: SLF001

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


class Receiver(Generic[T]):
    """The receiving end of a channel; iterate over it."""

    def __init__(self, channel: Channel[T], stream: MemoryObjectReceiveStream[T]) -> None:
        self.channel = channel
        self._stream = stream

    async def receive(self) -> T:
        """The next item. Raises anyio.EndOfStream when all senders are closed and nothing is left."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            item = self._stream.receive_nowait()
        except anyio.WouldBlock:
            began = anyio.current_time()
            try:
                item = await self._stream.receive()
            finally:
                self.channel._receive_blocked += anyio.current_time() - began  # noqa: SLF001
            self.channel._received += 1  # noqa: SLF001
            return item
        self.channel._received += 1  # noqa: SLF001
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return item

    def receive_nowait(self) -> T:
        """The next item at once. Raises anyio.WouldBlock or anyio.EndOfStream."""
        item = self._stream.receive_nowait()
        self.channel._received += 1  # noqa: SLF001
        return item

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
        if self._stream.statistics().open_receive_streams == 0:
            self.channel.finished.set()
