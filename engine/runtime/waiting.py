"""Time spent waiting, counted while the wait is still going on: a live display shows a blocked actor, not only one that was."""

from __future__ import annotations

import anyio


class WaitingTime:
    """Seconds spent waiting, summed over everybody who waits."""

    __slots__ = ("_began", "_next", "_total")

    def __init__(self) -> None:
        self._total = 0.0
        self._began: dict[int, float] = {}
        self._next = 0

    def begin(self) -> int:
        """Somebody waits from now on; the number is for `end`."""
        self._next += 1
        self._began[self._next] = anyio.current_time()
        return self._next

    def end(self, wait: int) -> None:
        """That wait is over."""
        self._total += anyio.current_time() - self._began.pop(wait)

    def seconds(self) -> float:
        """The sum up to now. May be asked outside an event loop when nobody waits."""
        if not self._began:
            return self._total
        now = anyio.current_time()
        return self._total + sum(now - began for began in self._began.values())
