"""Dedicated threads behind the ports, and how their results reach a waiting task.

    task (asyncio or trio)                     thread
    ----------------------                     ------
    submit(work) ---- queue, in order -------> runs one piece of work at a time
    await job.result() <-- loop's own wake-up -- finishes the job's future

Nobody polls: the thread blocks in its queue, and a waiting task sleeps on an event that the thread sets through the event
loop's thread-safe entry. Work that raises fails its own job and the thread goes on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from engine.backends.errors import BackendError
from engine.backends.futures import wait_for

T = TypeVar("T")

CLOSED = "the local backend was closed before this work was done"


class Job(Generic[T]):
    """Submitted work: a `Pending`."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()

    async def result(self) -> T:
        """Waits for the work and returns its result, or raises what it failed with. May be awaited again."""
        return await wait_for(self.future)


class WorkQueue:
    """One thread that runs submitted work in submission order."""

    def __init__(self, name: str, prepare: Callable[[], None]) -> None:
        self.closing = threading.Event()
        self._queue: queue.SimpleQueue[tuple[Job[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._prepare = prepare
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Queues `work`. Raises BackendError when the thread has been closed."""
        job: Job[T] = Job()
        with self._lock:
            if self.closing.is_set():
                raise BackendError("the local backend is closed: open it again to go on")
            self._queue.put((job, work))
        return job

    def close(self) -> None:
        """Ends the thread after the work in hand; what is still queued fails. Blocks until it has ended."""
        with self._lock:
            self.closing.set()
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._prepare()
        while (entry := self._queue.get()) is not None:
            self._execute(*entry)
            # Otherwise this frame would keep the last work's tensors alive while the thread waits.
            del entry

    def _execute(self, job: Job[Any], work: Callable[[], Any]) -> None:
        if self.closing.is_set():
            job.future.set_exception(BackendError(CLOSED))
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the job
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
