"""Run any program on a virtual clock, under one reproducible interleaving.

`simulate` runs an async function on trio with an autojumping clock (an hour of sleeping takes milliseconds) and a seeded scheduler (the seed
chooses the order in which runnable tasks are run; the same seed gives the same run). Many seeds make a fuzzer; `cancel_at` cancels the run
at any one of its steps; a simulated deadlock is reported instead of hanging.

What is simulated must wait on anyio alone: a thread looks idle to an autojumping clock. `engine.runtime.offload` runs inline here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import attrs

from engine.runtime.offload import inline

T = TypeVar("T")


class Deadlock(Exception):
    """Every task waits, and nothing is scheduled that could wake one."""


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

    `cancel_at`: cancel everything at the n-th task step. `horizon`: virtual seconds after which a program that only waits is a `Deadlock`.
    `max_steps`: task steps after which a program that spins is a `Deadlock` too. Errors are kept in the report (`unwrap` raises them), except
    KeyboardInterrupt and SystemExit.
    """
    import trio
    from trio.testing import MockClock

    conductor = _conductor(cancel_at, max_steps)
    outcome: dict[str, Any] = {}

    async def main() -> None:
        began = trio.current_time()
        token = inline.set(True)
        try:
            with trio.CancelScope() as scope, trio.move_on_at(began + horizon) as limit:
                conductor.scope = scope
                try:
                    outcome["value"] = await program(*args)
                except Exception as error:  # noqa: BLE001  (it goes into the report)
                    outcome["error"] = error
        finally:
            inline.reset(token)
            outcome["seconds"] = trio.current_time() - began
        if limit.cancelled_caught or conductor.overrun:
            what = f"after {max_steps} task steps" if conductor.overrun else f"within {horizon:g} virtual seconds"
            outcome["error"] = Deadlock(f"seed {seed}: the program did not finish {what}")
        outcome["cancelled"] = scope.cancelled_caught and not conductor.overrun

    with _seeded_scheduler(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[conductor])
    return SimulationReport(
        seed, outcome.get("value"), outcome.get("error"), outcome["cancelled"], outcome["seconds"], conductor.steps
    )


def _conductor(cancel_at: int | None, max_steps: int | None) -> Any:
    import trio

    class Conductor(trio.abc.Instrument):
        """Counts task steps and cancels at the one that was asked for."""

        def __init__(self) -> None:
            self.steps = 0
            self.overrun = False
            self.scope: trio.CancelScope | None = None

        def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
            if self.scope is None:
                return
            self.steps += 1
            if self.steps == cancel_at:
                self.scope.cancel()
            elif max_steps is not None and self.steps > max_steps:
                self.overrun = True
                self.scope.cancel()

    return Conductor()


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
