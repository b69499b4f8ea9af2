"""What the simulated server remembers of its requests, so that a resumed run finds it as if it had never stopped.

A request is known by what it asks. Saved with a state: for each request made so far, when it was done, or how far it had come; and how long the trainer
was still busy. All times are relative to the moment of saving, the cut.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import anyio

from engine.backends.simulated.server import Job, SlotServer
from engine.backends.simulated.trainer import Timeline


class Memory:
    """Requests by what they ask, in the order of asking."""

    def __init__(self, server: SlotServer, timeline: Timeline) -> None:
        self._server = server
        self._timeline = timeline
        self._asked: defaultdict[str, list[Job]] = defaultdict(list)
        self._restored: dict[str, deque[Job]] = {}
        self._suspended: dict[str, Any] | None = None

    def job(self, key: str, seconds: Sequence[float], priority: float) -> Job:
        """The job of a request: the one it had before the cut, or a new one."""
        if self._restored.get(key):
            job = self._restored[key].popleft()
            self._server.advance(anyio.current_time())
        else:
            job = self._server.admit(seconds, priority, anyio.current_time())
        self._asked[key].append(job)
        return job

    def saved(self) -> dict[str, Any]:
        """The state at this moment, as JSON values."""
        cut = anyio.current_time()
        self._server.advance(cut)
        requests = {
            key: [self._server.saved(job, cut) for job in jobs if not job.withdrawn]
            for key, jobs in self._asked.items()
        }
        return {"trainer": self._timeline.busy_until - cut, "requests": requests}

    def suspend(self, saved: dict[str, Any]) -> None:
        """Holds what was saved until `go_on`. A server that already serves something is left alone."""
        if self._server.idle:
            self._suspended = saved

    def go_on(self) -> None:
        """Takes a suspended server up again, from this moment on."""
        saved, self._suspended = self._suspended, None
        if saved is None:
            return
        origin = anyio.current_time()
        self._timeline.busy_until = max(self._timeline.busy_until, origin + saved["trainer"])
        self._restored = {
            key: deque(self._server.restore(job, origin) for job in jobs) for key, jobs in saved["requests"].items()
        }
