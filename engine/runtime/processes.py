"""Worker processes for CPU work with a deadline that kills: `await pool.run(function, *args, budget=1.0)`.

                      slots (as many as workers)            ready workers (a spare among them)
    run / map ──wait──────────▶ ──take──────────────────────▶ one job at a time ──reply──▶ back to the ready ones
                                                                    │ over budget, died, cancelled
                                                                    ▼
                                                      killed and reaped; a replacement starts in the background

A job runs in another process, so it cannot block the event loop, and it can be stopped at any moment whatever it does: a regular
expression, a computer algebra system, an endless loop, a segfault. The spare is why a kill delays nobody.

What a job costs beside its own work: one round trip, some 120 µs (`run`); 10 to 25 µs within a batch (`map`). Arguments are pickled on the event loop, so pass
megabytes as paths; large results are unpickled in a thread.

Workers are started with `subprocess`, never forked from a process that has threads. They run in process groups of their own: Ctrl-C does not reach
them, and a kill takes a job's own child processes along. If this process dies, however it dies, they die too (Linux: by a signal
from the kernel; elsewhere a thread in the worker notices). Under `simulate` jobs run inline, without processes and budgets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, cast

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from engine.runtime.jobs import (
    BudgetExceeded,
    JobError,
    JobFailed,
    Outcome,
    PoolClosed,
    QueueTimeout,
    WorkerDied,
    name_of,
    run_inline,
)
from engine.runtime.offload import inline
from engine.runtime.worker import LOADING_MAIN, Failure, encode
from engine.runtime.worker_handle import Lost, WorkerHandle

T = TypeVar("T")
Args = TypeVarTuple("Args")
START_LIMIT = 60.0
"""Seconds that starting a worker, or importing a function's module, may take."""


@attrs.frozen
class PoolStatistics:
    """A pool at one moment."""

    workers: int
    running: int
    """Jobs or batches in a worker now."""
    waiting: int
    """Calls that wait for a worker."""
    started: int
    """Processes started so far."""
    lost: int
    """Workers killed, or dead by themselves, so far."""


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Worker processes. Use as an async context manager: leaving it stops them all and waits until they are gone.

    `workers`: jobs that run at once; default: the CPUs this process may use. `spares`: workers kept ready beyond that, to take over from killed ones.
    `preload`: modules that every worker imports when it starts, so that the first job of a replacement does not wait for them.
    """

    def __init__(self, workers: int | None = None, *, spares: int = 1, preload: Sequence[str] = ()) -> None:
        self._size = usable_cpus() if workers is None else workers
        if self._size < 1 or spares < 0:
            raise ValueError(
                f"WorkerPool: workers must be at least 1 and spares at least 0, not {self._size} and {spares}"
            )
        self._spares = spares
        self._preload = tuple(preload)
        self._slots = anyio.Semaphore(self._size, fast_acquire=True)
        self._ready: list[WorkerHandle] = []
        self._news = anyio.Event()
        self._alive: set[WorkerHandle] = set()
        self._busy: set[WorkerHandle] = set()
        self._all_idle = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._unable: str | None = None
        self._started = self._lost = 0

    # ---- jobs

    async def run(
        self,
        function: Callable[[*Args], T],
        *args: *Args,
        budget: float | None = None,
        queue_timeout: float | None = None,
    ) -> T:
        """`function(*args)` in a worker. The function must be importable there: a class or function at the top level of a module.

        `budget`: seconds that the job may take from its start in a worker (waiting for a worker and importing the function's module do not
        count); None: no limit. `queue_timeout`: seconds to wait for a worker. Cancelling the call kills the job and replaces the worker.

        Raises BudgetExceeded, JobFailed, WorkerDied, QueueTimeout, PoolClosed (all JobError); whatever pickling the arguments raises.
        """
        (outcome,) = await self._play(name_of(function), [args], budget, queue_timeout)
        if isinstance(outcome, JobError):
            raise outcome
        return cast("T", outcome)

    async def map(
        self,
        function: Callable[[*Args], T],
        arguments: Iterable[tuple[*Args]],
        *,
        budget: float | None = None,
        batch: int = 32,
    ) -> list[T | JobError]:
        """`function(*args)` for each args in `arguments`, sent to the workers in batches: results in order, with the JobError of each that failed in its place.

        `budget` is for each job. A job that exceeds it, or takes its worker down, fails alone: those before it in its batch keep their results, and those
        after it go to another worker. At most `workers` batches are out at once, so a shared pool serves other callers in between.
        """
        name = name_of(function)
        items = list(arguments)
        size = max(1, min(batch, math.ceil(len(items) / self._size)))
        outcomes: list[Outcome] = [None] * len(items)
        starts = iter(range(0, len(items), size))
        async with anyio.create_task_group() as group:
            for _ in range(min(self._size, math.ceil(len(items) / size))):
                group.start_soon(self._map_share, name, items, starts, size, outcomes, budget)
        return outcomes

    async def _map_share(
        self,
        name: str,
        items: Sequence[Sequence[Any]],
        starts: Iterator[int],
        size: int,
        outcomes: list[Outcome],
        budget: float | None,
    ) -> None:
        for start in starts:
            at, stop = start, min(start + size, len(items))
            while at < stop:
                try:
                    done = await self._play(name, items[at:stop], budget, None)
                except JobError as error:  # no worker any more
                    done = [error] * (stop - at)
                outcomes[at : at + len(done)] = done
                at += len(done)

    async def _play(
        self, name: str, batch: Sequence[Sequence[Any]], budget: float | None, queue_timeout: float | None
    ) -> list[Outcome]:
        """Outcomes of the batch, up to and including the first job that cost the worker its life."""
        if self._tasks is None:
            raise PoolClosed(f"the pool is not open: {name} was not run; use `async with WorkerPool(...) as pool`")
        if inline.get():
            await anyio.lowlevel.checkpoint()
            return [run_inline(name, args) for args in batch]
        frame = encode(("run", name, batch))
        worker = await self._take(name, queue_timeout)
        try:
            outcomes = await self._converse(worker, name, frame, len(batch), budget)
        except BaseException:  # cancelled: whatever the worker is at, its next reply would not be ours
            worker.kill()
            raise
        finally:
            self._release(worker)
        return outcomes

    async def _converse(
        self, worker: WorkerHandle, name: str, frame: bytes, count: int, budget: float | None
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            if name not in worker.loaded:
                failure = await worker.load(name, START_LIMIT)
                if failure is not None:
                    return [JobFailed(name, failure) for _ in range(count)]
            await worker.send(frame)
            while len(outcomes) < count:
                deadline = math.inf if budget is None else anyio.current_time() + budget
                kind, content = await worker.receive(deadline)
                outcomes.append(content if kind == "value" else JobFailed(name, Failure(*content)))
        except TimeoutError:
            worker.kill()
            limit = (
                f"its budget of {budget:g} s"
                if name in worker.loaded
                else f"{START_LIMIT:g} s for importing its module"
            )
            outcomes.append(BudgetExceeded(f"{name} exceeded {limit}; its worker was killed"))
        except Lost:
            if self._tasks is None:
                outcomes.append(PoolClosed(f"the pool was closed while {name} ran"))
            else:
                outcomes.append(WorkerDied(f"the worker process running {name} {await worker.reap()}"))
        return outcomes

    # ---- workers

    async def _take(self, name: str, timeout: float | None) -> WorkerHandle:
        if timeout is None:
            return await self._wait_for_worker(name)
        with anyio.move_on_after(timeout):
            return await self._wait_for_worker(name)
        raise QueueTimeout(f"no worker was free for {name} within {timeout:g} s ({self._size} workers)")

    async def _wait_for_worker(self, name: str) -> WorkerHandle:
        await self._slots.acquire()
        try:
            while True:
                worker = await self._next_ready(name)
                if not worker.hung_up():
                    self._busy.add(worker)
                    return worker
                self._discard(worker)  # it died while it was idle: no job's fault
        except BaseException:
            self._slots.release()
            raise

    async def _next_ready(self, name: str) -> WorkerHandle:
        while not self._ready:
            if self._tasks is None:
                raise PoolClosed(f"the pool was closed before {name} ran")
            if self._unable is not None:
                raise WorkerDied(f"{name} was not run: {self._unable}")
            await self._news.wait()
        return self._ready.pop()  # the one used last: its caches are warm

    def _tell(self) -> None:
        """Wakes those who wait for a ready worker."""
        self._news.set()
        self._news = anyio.Event()

    def _give(self, worker: WorkerHandle) -> None:
        self._ready.append(worker)
        self._tell()

    def _release(self, worker: WorkerHandle) -> None:
        self._busy.discard(worker)
        if worker.usable and self._tasks is not None:
            self._give(worker)
        else:
            self._discard(worker)
        self._slots.release()
        if not self._busy:
            self._all_idle.set()

    def _discard(self, worker: WorkerHandle) -> None:
        self._lost += 1
        worker.kill()
        if self._tasks is not None:
            self._tasks.start_soon(self._bury, worker)
            self._tasks.start_soon(self._start)

    async def _bury(self, worker: WorkerHandle) -> None:
        await worker.reap()
        worker.close()
        self._alive.discard(worker)

    async def _start(self) -> None:
        """Starts one more worker; failing that, the pool can serve nobody any more, and says so to everyone."""
        if self._tasks is None:  # closed meanwhile
            return None
        try:
            worker = WorkerHandle()
        except OSError as error:
            return self._give_up(f"cannot start a worker process: {error}")
        self._alive.add(worker)
        self._started += 1
        try:
            failure = await worker.setup(self._preload, START_LIMIT)
        except TimeoutError:
            return self._give_up(f"a worker process was not ready after {START_LIMIT:g} s")
        except Lost:
            return self._give_up(f"a worker process {await worker.reap()} while it started")
        if failure is not None:
            return self._give_up(
                f"a worker process cannot import what it should preload ({', '.join(self._preload)})\n{failure.traceback}"
            )
        if self._tasks is not None:
            self._give(worker)
        return None

    def _give_up(self, reason: str) -> None:
        if self._tasks is None:  # no wonder: the pool is closing
            return
        self._unable = self._unable or reason
        self._tell()

    # ---- the pool's life

    async def __aenter__(self) -> Self:
        if LOADING_MAIN in os.environ:
            raise RuntimeError(
                "a worker process is importing this program's main module, and that module opens a WorkerPool when it is imported: "
                'put what it starts under `if __name__ == "__main__":`'
            )
        self._tasks = await anyio.create_task_group().__aenter__()
        if inline.get():
            return self
        try:
            async with anyio.create_task_group() as first:
                for _ in range(self._size):
                    first.start_soon(self._start)
            if self._unable is not None:
                raise WorkerDied(self._unable)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        for _ in range(self._spares):
            self._tasks.start_soon(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, None
        self._tell()
        with anyio.CancelScope(shield=True):
            for worker in self._alive:
                worker.kill() if worker in self._busy else worker.hang_up()
            while self._busy:  # their callers are being told
                self._all_idle = anyio.Event()
                await self._all_idle.wait()
            async with anyio.create_task_group() as burials:
                for worker in tuple(self._alive):
                    burials.start_soon(self._bury, worker)
        self._ready.clear()
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)  # what the block raised goes on as it is, not in a group

    def statistics(self) -> PoolStatistics:
        """Counts, now."""
        waiting = self._slots.statistics().tasks_waiting
        return PoolStatistics(self._size, len(self._busy), waiting, self._started, self._lost)
