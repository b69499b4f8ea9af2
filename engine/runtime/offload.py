"""Work that would block the event loop, in a thread; inline where the clock is virtual.

A thread looks idle to an autojumping clock: simulated time would run on while it works. `simulate` therefore sets
`inline`, and the same program runs without threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")

inline: ContextVar[bool] = ContextVar("callsheet_offload_inline", default=False)


async def offload(
    function: Callable[[*Args], T], *args: *Args, abandon: bool = False, limiter: anyio.CapacityLimiter | None = None
) -> T:
    """`function(*args)` off the event loop. Not abandoned on cancellation, unless `abandon` says so: a half-written file helps nobody.

    `limiter`: for work that may hang, so that it takes none of the threads that the rest of the program needs.
    """
    if inline.get():
        await anyio.lowlevel.checkpoint()
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=abandon, limiter=limiter)
