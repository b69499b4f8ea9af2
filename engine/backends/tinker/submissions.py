"""Work that reaches a server in order, in steps that block nobody.

    submit(operation) ── queue ──▶ runs until RELEASE ──▶ the next operation begins
                                   │        '── future done ──▶ runs on ──▶ result
                                   '── a future before RELEASE: the queue waits with it

An operation is a generator that runs in one worker thread. It yields a concurrent future to wait for (and is sent its result, or has its error
thrown in), and `RELEASE` once all that must come before later work has been submitted. What it returns, or raises, is its result. Most
operations submit one request and release at once; one that needs an answer before it can submit its second request (a loss that is
computed here, a restored state) holds the queue meanwhile, so that the order is the one in which work was given, whatever waits for what.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

import attrs

from engine.backends.errors import BackendError

T = TypeVar("T")


class _Release:
    """The type of `RELEASE`."""


RELEASE: Final = _Release()
"""Yielded by an operation: later operations may begin."""

Operation = Generator["Future[Any] | _Release", Any, T]

CLOSED = "the tinker backend was closed before this work was done"


class Runs(Protocol):
    """What runs the steps: one of an executor's threads, or, on a virtual clock, whoever calls."""

    def submit(self, function: Callable[[], None], /) -> object: ...

    def shutdown(self) -> None: ...


class Inline:
    """Runs a step at once, in the calling thread. For virtual clocks, to which a thread looks idle."""

    def submit(self, function: Callable[[], None], /) -> None:
        function()

    def shutdown(self) -> None:
        """Nothing to end."""


def worker_thread() -> Runs:
    """One thread that ends with `shutdown`."""
    return ThreadPoolExecutor(1, thread_name_prefix="callsheet-tinker")


@attrs.define(eq=False)
class _Job:
    """An operation on its way."""

    operation: Operation[Any]
    result: Future[Any]
    holds: bool
    """Later operations wait for it."""
    awaits: Future[Any] | None = None


class Submissions:
    """The queue."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._under_way: set[_Job] = set()
        self._held = False
        self._closed = False

    def submit(self, operation: Operation[T]) -> Future[T]:
        """Puts an operation behind all that were submitted before. Raises BackendError when closed."""
        job = _Job(operation, Future(), holds=True)
        with self._lock:
            self._add(job)
            self._queue.append(job)
            idle, self._held = not self._held, True
        if idle:
            self._run(self._take_turns)
        return job.result

    def aside(self, operation: Operation[T]) -> Future[T]:
        """Runs an operation that nothing needs to wait behind, nor it behind anything."""
        job = _Job(operation, Future(), holds=False)
        with self._lock:
            self._add(job)
        self._run(lambda: self._advance(job))
        return job.result

    def close(self) -> None:
        """Fails what is not done, cancels what it waits for, and ends the worker. Blocks until the step in hand has ended."""
        with self._lock:
            self._closed = True
            unfinished = list(self._under_way)
            self._queue.clear()
        for job in unfinished:
            if job.awaits is not None:
                job.awaits.cancel()
            self._finish(job, error=BackendError(CLOSED))
        self._runs.shutdown()

    @property
    def unfinished(self) -> int:
        """Operations without a result yet."""
        return len(self._under_way)

    def _add(self, job: _Job) -> None:
        if self._closed:
            job.operation.close()
            raise BackendError("the tinker backend is closed: open it again to go on")
        self._under_way.add(job)

    def _run(self, step: Callable[[], None]) -> None:
        try:
            self._runs.submit(step)
        except RuntimeError:  # the worker has ended, and `close` has failed the operations
            return

    def _take_turns(self) -> None:
        """Runs operations one after the other, until one holds or none is left."""
        while True:
            with self._lock:
                if not self._queue:
                    self._held = False
                    return
                job = self._queue.popleft()
            self._advance(job)
            if job.holds:
                return

    def _resume(self, job: _Job) -> None:
        held = job.holds
        self._advance(job)
        if held and not job.holds:
            self._take_turns()

    def _advance(self, job: _Job) -> None:
        """Runs an operation until it waits for something that is not done, or ends. A job that has ended or released holds no longer."""
        try:
            while not self._closed:
                awaited = self._step(job)
                if awaited is not None and not awaited.done():
                    awaited.add_done_callback(lambda _: self._run(lambda: self._resume(job)))
                    return
        except StopIteration as end:
            self._finish(job, value=end.value)
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits for the result)
            self._finish(job, error=error)
        job.holds = False

    def _step(self, job: _Job) -> Future[Any] | None:
        """Runs an operation to its next yield; what it waits for, if that is a future."""
        awaited, job.awaits = job.awaits, None
        if awaited is None:
            yielded = next(job.operation)
        else:
            try:
                value = awaited.result()
            except (Exception, CancelledError) as error:  # noqa: BLE001  (thrown where it is awaited)
                yielded = job.operation.throw(error)
            else:
                yielded = job.operation.send(value)
        if isinstance(yielded, _Release):
            job.holds = False
            return None
        job.awaits = yielded
        return yielded

    def _finish(self, job: _Job, value: Any = None, error: BaseException | None = None) -> None:
        with self._lock:
            if job not in self._under_way:
                return
            self._under_way.remove(job)
        if error is not None:
            job.result.set_exception(error)
        else:
            job.result.set_result(value)
