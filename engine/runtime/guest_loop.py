"""An asyncio loop in a thread of its own, for libraries that speak asyncio alone, or that hold their loop up.

    async with guest_loop() as guest:
        found = await guest.run(library.evaluate, task)       # an async function over there
        ...                                                   # where `guest.home(sample, request)` runs one of ours over here, on asyncio or trio

The library neither sees our loop nor blocks it, and a run on trio can use it. A call that is cancelled on one side is cancelled on the other. A thread looks idle to
an autojumping clock: simulated time runs on while it works.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple, cast

import anyio
import anyio.from_thread
import anyio.to_thread

from engine.runtime.ungrouped import ungrouped

T = TypeVar("T")
Args = TypeVarTuple("Args")

GRACE = 10.0
"""Seconds that what is cancelled over there has to end."""


class GuestLoop:
    """The loop of a guest. Made by `guest_loop`."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, grace: float) -> None:
        self._portal = portal
        self._grace = grace
        self._context = contextvars.copy_context()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    async def run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """`await function(*args)` on the guest's loop: called from ours.

        Raises what it raises. Cancelled here, it is cancelled there, and waited for, `grace` seconds at most. Raises RuntimeError where the guest has left.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            raise RuntimeError("the guest's loop has ended: use it within its `async with`")
        call = _Call(self._portal, anyio.Event())
        # Without our context variables: they say, among other things, which library runs the loop.
        loop.call_soon_threadsafe(call.begin, function, args, context=contextvars.Context())
        try:
            await call.ended.wait()
        except anyio.get_cancelled_exc_class():
            loop.call_soon_threadsafe(call.cancel)
            with anyio.move_on_after(self._grace, shield=True) as waiting:
                await call.ended.wait()
            if waiting.cancelled_caught:
                warnings.warn(
                    f"{call.name} did not end within {self._grace:g} s of its cancellation",
                    ResourceWarning,
                    stacklevel=2,
                )
            raise
        return cast("T", call.result())

    async def home(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """`await function(*args)` on our loop, with the context variables of whoever opened the guest: called from the guest's loop."""
        begun = self._context.copy().run(lambda: self._portal.start_task_soon(function, *args))
        return await asyncio.wrap_future(begun)

    def _main(self, ready: anyio.Event) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: anyio.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._portal.start_task_soon(ready.set)
        await self._stop.wait()

    def _leave(self) -> None:
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)


class _Call:
    """One call over there."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, ended: anyio.Event) -> None:
        self._portal = portal
        self.ended = ended
        self.name = ""
        self._task: asyncio.Future[Any] | None = None

    def begin(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        self.name = getattr(function, "__qualname__", repr(function))

        async def call() -> Any:
            return await function(*args)

        self._task = asyncio.ensure_future(call())
        self._task.add_done_callback(lambda _: self._portal.start_task_soon(self.ended.set))

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def result(self) -> Any:
        if self._task is None:
            raise AssertionError("the call has ended, so it had begun")
        if self._task.cancelled():
            raise RuntimeError(f"{self.name} was cancelled by its own loop")
        return self._task.result()


@asynccontextmanager
async def guest_loop(name: str = "guest", *, grace: float = GRACE) -> AsyncIterator[GuestLoop]:
    """A loop in a thread that ends with the block, and everything that runs on it with it. `name`: the thread's. `grace`: seconds that what is cancelled has to end;
    what takes longer is left to its thread, with a ResourceWarning."""
    with ungrouped():
        async with anyio.from_thread.BlockingPortal() as portal:
            guest = GuestLoop(portal, grace)
            ready = anyio.Event()
            thread = threading.Thread(target=guest._main, args=(ready,), name=name, daemon=True)  # noqa: SLF001  (one class in two halves)
            thread.start()
            try:
                with anyio.CancelScope(shield=True):
                    await ready.wait()
                yield guest
            finally:
                guest._leave()  # noqa: SLF001
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(thread.join, grace)
                if thread.is_alive():
                    warnings.warn(
                        f"the thread of {name} goes on: it did not end within {grace:g} s",
                        ResourceWarning,
                        stacklevel=2,
                    )
