"""Run any program on a virtual clock, under one reproducible interleaving.

`simulate` runs an async function on trio with an autojumping clock (an hour of sleeping takes milliseconds) and a seeded scheduler (the seed
chooses the order in which runnable tasks are run; the same seed gives the same run). Many seeds make a fuzzer; `cancel_at` cancels the run
at any one of its steps; a simulated deadlock is reported instead of hanging.

What is simulated must wait on anyio alone: a thread looks idle to an autojumping clock. `engine.runtime.offload` runs inline here.
The scheduler is the process's: one simulation runs at a time (a simulation within a simulated or other trio program is fine).
"""

from __future__ import annotations

import contextvars
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import attrs

from engine.runtime.offload import inline

if TYPE_CHECKING:
    import trio

T = TypeVar("T")


class Deadlock(Exception):
    """Every task waits, and nothing is scheduled that could wake one. Says where each of them waits."""


@attrs.frozen
class SimulationReport(Generic[T]):
    """How a simulated run ended."""

    seed: int
    value: T | None
    """What the program returned."""
    error: BaseException | None
    """What it raised instead."""
    cancelled: bool
    """It was stopped by `cancel_at`."""
    seconds: float
    """Virtual time that passed."""
    steps: int
    """Task steps that were run: the moments at which `cancel_at` can strike."""

    def unwrap(self) -> T:
        """The value; raises the error if there was one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # no error: the program returned


def simulate(
    program: Callable[..., Awaitable[T]],
    *args: Any,
    seed: int = 0,
    cancel_at: int | None = None,
    horizon: float = 1e9,
    max_steps: int | None = None,
) -> SimulationReport[T]:
    """Runs `program(*args)` to its end on the virtual clock.

    `cancel_at`: cancel everything at the n-th task step, counted from 1. `horizon`: virtual seconds after which a program that only waits is a
    `Deadlock`. `max_steps`: task steps after which a program that goes on and on (a ticker beside a deadlock, say) is a `Deadlock` too. Errors
    are kept in the report (`unwrap` raises them), except KeyboardInterrupt and SystemExit.
    """
    import trio
    from trio.testing import MockClock

    if trio.lowlevel.in_trio_run():  # trio runs once per thread
        return _in_a_thread(
            lambda: simulate(program, *args, seed=seed, cancel_at=cancel_at, horizon=horizon, max_steps=max_steps)
        )
    conductor = _Conductor(seed, cancel_at, max_steps)
    outcome = _Outcome()

    async def main() -> None:
        began = trio.current_time()
        inline.set(True)  # in this task's own context, which ends with it
        try:
            with trio.CancelScope() as scope:
                conductor.conduct(scope, began + horizon, f"within {horizon:g} virtual seconds")
                outcome.value = await program(*args)
        except Exception as error:  # noqa: BLE001  (it goes into the report)
            outcome.error = error
        finally:
            conductor.scope = None
            outcome.seconds = trio.current_time() - began
        if conductor.deadlock is not None:
            conductor.deadlock.__cause__ = outcome.error
            outcome.error, outcome.value = conductor.deadlock, None
        outcome.cancelled = scope.cancelled_caught and outcome.error is None

    with _seeded_scheduler(seed):
        trio.run(
            main, clock=MockClock(autojump_threshold=0), instruments=cast("list[trio.abc.Instrument]", [conductor])
        )
    return SimulationReport(seed, outcome.value, outcome.error, outcome.cancelled, outcome.seconds, conductor.steps)


@attrs.define
class _Outcome:
    value: Any = None
    error: Exception | None = None
    cancelled: bool = False
    seconds: float = 0.0


class _Conductor:
    """Counts the program's task steps, cancels at the one that was asked for, and ends what would never end. A `trio.abc.Instrument`, by its
    methods: importing this module must not import trio."""

    def __init__(self, seed: int, cancel_at: int | None, max_steps: int | None) -> None:
        self.steps = 0
        self.deadlock: Deadlock | None = None
        self.scope: trio.CancelScope | None = None
        """The program's, while it runs."""
        self._seed = seed
        self._cancel_at = cancel_at
        self._max_steps = max_steps

    def conduct(self, scope: trio.CancelScope, horizon: float, limit: str) -> None:
        """From the program's own task, before the program."""
        import trio

        self.scope = scope
        self._main = trio.lowlevel.current_task()
        self._watcher = trio.lowlevel.spawn_system_task(self._watch, horizon, limit)

    async def _watch(self, horizon: float, limit: str) -> None:
        import trio

        await trio.sleep_until(horizon)
        self._give_up(limit)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        if self.scope is None or task is self._watcher:
            return
        self.steps += 1
        if self.steps == self._cancel_at:
            self.scope.cancel()
        elif self._max_steps is not None and self.steps > self._max_steps and self.deadlock is None:
            self._give_up(f"after {self._max_steps} task steps")

    def _give_up(self, limit: str) -> None:
        if self.scope is None:
            return
        places = [place for task in _tasks_below(self._main) if (place := _waits_at(task))]
        waiting = "".join(f"\n  {place}" for place in places) or " no await"
        self.deadlock = Deadlock(f"seed {self._seed}: the program did not finish {limit}; its tasks wait at{waiting}")
        self.scope.cancel()
        for task in _tasks_below(self._main):
            _unshield(task)  # a shielded wait that nothing ends would hang the run, and with it whoever is testing


def _tasks_below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda child: child._counter):  # noqa: SLF001  (in the order of their starting)
            yield from _tasks_below(child)


def _waits_at(task: trio.lowlevel.Task) -> str | None:
    """Name of the task, and the line of the user's code where it waits; None for one that only waits for its children."""
    frames = list(task.iter_await_frames())
    if any(frame.f_code.co_name == "_nested_child_finished" for frame, _ in frames):
        return None
    own = [place for place in frames if not place[0].f_globals["__name__"].startswith(_LIBRARIES)]
    if not own:
        return task.name
    frame, line = own[-1]
    return f"{task.name}: {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"


_LIBRARIES = ("anyio.", "trio.", "engine.runtime.")


def _unshield(task: trio.lowlevel.Task) -> None:
    status: Any = task._cancel_status  # noqa: SLF001
    while status is not None:
        status._scope.shield = False  # noqa: SLF001
        status = status._parent  # noqa: SLF001


def _in_a_thread(work: Callable[[], SimulationReport[T]]) -> SimulationReport[T]:
    results: list[SimulationReport[T] | BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  (raised again below)
            results.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="simulation")
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


class _seeded_scheduler:  # noqa: N801  (used like a function)
    """Within the block, trio draws the order of runnable tasks from a generator of ours. What trio's own Hypothesis support does."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        from trio._core import _run

        self._run = _run
        self._kept = (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r)  # noqa: SLF001
        _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001
        _run._r = random.Random(self.seed)  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        self._run._ALLOW_DETERMINISTIC_SCHEDULING, self._run._r = self._kept  # type: ignore[misc]  # noqa: SLF001
