"""Waiting for a server's answers, never for ever.

The SDK asks for a result again and again as long as it gets none, whether the server is slow, has lost the request, or is gone. So every wait here has a deadline;
and while one is on, the server's door is tried from time to time, so that a server that died ends a run within a minute and not at the deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio

from engine.backends.errors import TransientError
from engine.backends.futures import until_done

T = TypeVar("T")

LookUp = Callable[[], Awaitable[str | None]]
"""Tries to reach the server: None when it answers, else why not."""


class Patience:
    """How long to wait, and what is known of the server meanwhile. All times are anyio's, in seconds."""

    def __init__(
        self, server: str, look_up: LookUp | None, *, look_every: float = 15.0, give_up_after: float = 45.0
    ) -> None:
        """`server`: its name in messages. `look_up` None: the server is not looked for. `give_up_after`: how long it may be out of reach."""
        self._server = server
        self._look_up = look_up
        self._look_every = look_every
        self._give_up_after = give_up_after
        self._looked_at: float | None = None
        self._gone_since: float | None = None
        self._why = ""
        self.answers = 0
        """Answers that have come; any thread may count one."""

    async def wait(self, future: Future[T], deadline: float, what: str, *, while_others_answer: bool = False) -> None:
        """Waits until `future` is done. Raises TransientError at the deadline, or when the server has been out of reach for too long.

        `while_others_answer`: the deadline begins anew with every answer to anything, for work that is done in turn.
        """
        began = anyio.current_time()
        seen = self.answers
        while not future.done():
            now = anyio.current_time()
            if while_others_answer and self.answers != seen:
                began, seen = now, self.answers
            left = began + deadline - now
            if left <= 0:
                raise TransientError(f"{what}: no answer from {self._server} within the deadline of {deadline:g} s")
            with anyio.move_on_after(min(left, self._look_every)) as moved_on:
                await until_done(future)
            if moved_on.cancelled_caught and not future.done():
                await self._look(what)

    async def _look(self, what: str) -> None:
        if self._look_up is None:
            return
        now = anyio.current_time()
        if self._looked_at is None or now - self._looked_at >= self._look_every * 0.9:
            self._looked_at = now
            why = await self._look_up()
            if why is None:
                self._gone_since = None
            elif self._gone_since is None:
                self._gone_since, self._why = now, why
        if self._gone_since is not None and anyio.current_time() - self._gone_since >= self._give_up_after:
            gone = anyio.current_time() - self._gone_since
            raise TransientError(f"{what}: {self._server} has been out of reach for {gone:.0f} s ({self._why})")
