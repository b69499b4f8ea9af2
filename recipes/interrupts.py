"""Ctrl-C: once to stop after the step under way, twice to stop now, a third time to leave at once. SIGTERM counts as Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import anyio
import attrs
from anyio.abc import TaskStatus

from recipes.terminal import warn

AFTER_THIS_STEP = "stopping after this step; press Ctrl-C again to stop now"
NOW = "stopping now"


@attrs.define
class Interrupts:
    """What a command has been sent so far."""

    count: int = 0
    last: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """As a shell reports a program that a signal ended: 130 for Ctrl-C."""
        return 128 + self.last


class Interrupted(Exception):
    """The block was left because it was told to stop now."""


received: ContextVar[Interrupts | None] = ContextVar("callsheet_interrupts", default=None)
"""Set by the command line before it runs anything, so that it knows afterwards."""


class StopHandle:
    """Asks an embedded recipe to end: call it. Before the recipe listens, or after it has ended, that is no error."""

    def __init__(self) -> None:
        self.requested = False
        self._stops: list[Callable[[], None]] = []

    def __call__(self) -> None:
        self.requested = True
        for stop in self._stops:
            stop()

    @contextmanager
    def listening(self, stop: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a call of the handle calls `stop`; at once, where it was called before."""
        self._stops.append(stop)
        try:
            if self.requested:
                stop()
            yield
        finally:
            self._stops.remove(stop)


host: ContextVar[StopHandle | None] = ContextVar("callsheet_host", default=None)
"""Set where a recipe runs inside another program, whose signals are its own."""


@asynccontextmanager
async def stop_on_interrupt(
    stop: Callable[[], None], say: Callable[[str], None] | None = None
) -> AsyncIterator[Interrupts]:
    """While the block runs, the first SIGINT or SIGTERM calls `stop` and the second cancels the block, which then raises Interrupted.

    `say` is given the line that tells what happens; by default it goes to stderr. Works on asyncio and trio. Outside the main
    thread, where a program receives no signals, the block runs as it is; inside another program, whoever hosts it stops it, by its `StopHandle`.
    """
    if (handle := host.get()) is not None:
        with handle.listening(stop):
            yield Interrupts()
        return
    interrupts = received.get() or Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        try:
            with anyio.CancelScope() as block:
                await group.start(_listen, stop, say or warn, interrupts, block)
                yield interrupts
        except Exception as error:  # noqa: BLE001  (raised again below: what the block raises is not wrapped in a group)
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if block.cancelled_caught:
        raise Interrupted(NOW)


async def _listen(
    stop: Callable[[], None],
    say: Callable[[str], None],
    interrupts: Interrupts,
    block: anyio.CancelScope,
    *,
    task_status: TaskStatus[None],
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            interrupts.count += 1
            interrupts.last = number
            if interrupts.count == 1:
                say(AFTER_THIS_STEP)
                stop()
            elif interrupts.count == 2:
                say(NOW)
                block.cancel()
            else:
                if sys.stderr.isatty():
                    sys.stderr.write("\x1b[?25h")  # a live display has hidden the cursor
                    sys.stderr.flush()
                os._exit(interrupts.exit_code)
