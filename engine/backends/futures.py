"""Futures that other threads finish, awaited on asyncio or trio.

Nobody polls: a waiting task sleeps on an event that the finishing thread sets through the event loop's thread-safe entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import trio

T = TypeVar("T")


def thread_safe_call() -> Callable[[Callable[[], None]], None]:
    """A function that any thread may use to run a callback in the event loop of the current task."""
    if trio.lowlevel.in_trio_run():
        enter: Callable[[Callable[[], None]], Any] = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        enter = asyncio.get_running_loop().call_soon_threadsafe

    def call(callback: Callable[[], None]) -> None:
        try:
            enter(callback)
        except RuntimeError:  # the loop has ended; so has whoever waited (trio.RunFinishedError is a RuntimeError)
            return

    return call


async def until_done(future: Future[Any]) -> None:
    """Waits until `future` is done, however it ended. Cancelling the wait leaves the work alone."""
    if future.done():
        await anyio.lowlevel.checkpoint()
        return
    finished = anyio.Event()
    call = thread_safe_call()
    future.add_done_callback(lambda _: call(finished.set))
    await finished.wait()


async def wait_for(future: Future[T]) -> T:
    """The result of a thread's `future`, or what it failed with. Cancelling the wait leaves the work alone."""
    await until_done(future)
    return future.result()
