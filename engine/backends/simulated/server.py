"""The simulated sampling server: a queue in front of slots, on anyio's clock, without a task of its own.

Requests wait by (priority, arrival). Each sample takes a slot for its seconds and frees it when it is done, so a long sample does not
hold the slots of its request's other samples. The queue's events happen at exact times computed here, however late the event loop runs:
`advance` works off everything that is due. One of the waiting callers, the timekeeper, sleeps until the next event; the others wait to
be told.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs


@attrs.define(eq=False)
class Job:
    """A request in the server."""

    seconds: Sequence[float]
    """How long each sample takes."""
    priority: float
    arrival: int
    started: int = 0
    unfinished: int = 0
    finished: float | None = None
    """When its last sample was done."""
    withdrawn: bool = False
    wake: anyio.Event | None = None

    @property
    def running(self) -> int:
        """Slots it holds."""
        return self.started - (len(self.seconds) - self.unfinished)


class SlotServer:
    """`slots` samples decode at once; None: as many as there are."""

    def __init__(self, slots: int | None) -> None:
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self._free = sys.maxsize if slots is None else slots
        self._running: list[tuple[float, int, Job]] = []
        self._waiting: list[tuple[float, int, Job]] = []
        self._callers: dict[Job, None] = {}
        self._timekeeper: Job | None = None
        self._armed = 0.0
        self._arrivals = itertools.count()
        self._starts = itertools.count()
        self.busy_seconds = 0.0
        """Slot seconds given to samples so far, those still running included in full."""

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or is being waited for."""
        return not (self._running or self._waiting or self._callers)

    def admit(self, seconds: Sequence[float], priority: float, now: float) -> Job:
        """Puts a request with samples of these durations into the queue."""
        self.advance(now)
        job = Job(seconds, priority, next(self._arrivals), unfinished=len(seconds))
        heapq.heappush(self._waiting, (priority, job.arrival, job))
        self._start(now)
        self.advance(now)
        return job

    async def wait(self, job: Job) -> None:
        """Returns when all samples of the job are done, after a checkpoint. Cancelling takes the job out of the server."""
        if job.finished is not None:
            await anyio.lowlevel.checkpoint()
            return
        self._callers[job] = None
        try:
            while job.finished is None:
                job.wake = anyio.Event()
                if self._timekeeper is None or self._timekeeper is job:
                    await self._keep_time(job, job.wake)
                else:
                    await job.wake.wait()
        finally:
            del self._callers[job]
            if job.finished is None:
                self._withdraw(job, anyio.current_time())
            if self._timekeeper is None or self._timekeeper is job:
                # None: this job had been told to take over, and left instead, being done or cancelled.
                self._timekeeper = None
                successor = next(iter(self._callers), None)
                if successor is not None:
                    _wake(successor)

    def advance(self, now: float) -> None:
        """Works off every event up to `now`, each at its own time."""
        while self._running and self._running[0][0] <= now:
            at, _, job = heapq.heappop(self._running)
            if job.withdrawn:
                continue
            self._free += 1
            job.unfinished -= 1
            if job.unfinished == 0:
                job.finished = at
                _wake(job)
            self._start(at)

    async def _keep_time(self, job: Job, wake: anyio.Event) -> None:
        self._timekeeper = job
        self._armed = self._running[0][0]
        with anyio.CancelScope(deadline=self._armed) as scope:
            await wake.wait()
        # A loop may fire a timer a clock tick early: what is due at the deadline is due now.
        self.advance(max(anyio.current_time(), self._armed) if scope.cancelled_caught else anyio.current_time())

    def _start(self, now: float) -> None:
        while self._waiting and self._free > 0:
            job = self._waiting[0][2]
            if job.withdrawn:
                heapq.heappop(self._waiting)
                continue
            seconds = job.seconds[job.started]
            job.started += 1
            if job.started == len(job.seconds):
                heapq.heappop(self._waiting)
            heapq.heappush(self._running, (now + seconds, next(self._starts), job))
            self._free -= 1
            self.busy_seconds += seconds
        if self._timekeeper is not None and self._running and self._running[0][0] < self._armed:
            _wake(self._timekeeper)

    def _withdraw(self, job: Job, now: float) -> None:
        self.advance(now)
        if job.finished is not None:
            return
        job.withdrawn = True
        self._free += job.running
        self.busy_seconds -= sum(at - now for at, _, other in self._running if other is job)
        self._start(now)

    def saved(self, job: Job, cut: float) -> dict[str, Any]:
        """What is known of a job at the moment `cut`, as JSON: times are relative to it."""
        if job.finished is not None:
            return {"finished": job.finished - cut}
        return {
            "seconds": list(job.seconds),
            "running": sorted(at - cut for at, _, other in self._running if other is job),
            "started": job.started,
            "priority": job.priority,
            "arrival": job.arrival,
        }

    def restore(self, saved: dict[str, Any], origin: float) -> Job:
        """The job as it was, with `origin` for the moment of the cut: it goes on whether or not anybody waits for it yet."""
        if "finished" in saved:
            return Job((), 0.0, 0, finished=origin + saved["finished"])
        job = Job(saved["seconds"], saved["priority"], saved["arrival"], started=saved["started"])
        job.unfinished = len(saved["running"]) + len(job.seconds) - job.started
        for after in saved["running"]:
            heapq.heappush(self._running, (origin + after, next(self._starts), job))
            self._free -= 1
        if job.started < len(job.seconds):
            heapq.heappush(self._waiting, (job.priority, job.arrival, job))
        self._arrivals = itertools.count(max(next(self._arrivals), job.arrival + 1))
        return job


def _wake(job: Job) -> None:
    if job.wake is not None:
        job.wake.set()
