"""Submitted work, watched while others wait."""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from engine.backends.ports import Pending

T = TypeVar("T")


class Watched(Generic[T]):
    """A submitted piece of work, whose time of finishing is noted as it comes, and whose failure fails the trainer at once."""

    def __init__(self, name: str, pending: Pending[T], watchers: TaskGroup) -> None:
        self.name = name
        self.submitted_at = anyio.current_time()
        self.finished_at = self.submitted_at
        self._pending = pending
        self.delivered: T | None = None
        self._done = anyio.Event()
        watchers.start_soon(self._watch)

    async def _watch(self) -> None:
        self.delivered = await self._pending.result()
        self.finished_at = anyio.current_time()
        self._done.set()

    async def result(self) -> T:
        await self._done.wait()
        return self.delivered  # type: ignore[return-value]  # delivered before it was done
