"""For tests of your own actors: the virtual clock, seeded schedules, cancellation at every step.

from engine.runtime.testing import every_cancellation, schedules, simulate
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from engine.runtime.simulation import Deadlock, SimulationReport, simulate

T = TypeVar("T")

__all__ = ["Deadlock", "SimulationReport", "every_cancellation", "schedules", "simulate"]


def schedules(
    program: Callable[..., Awaitable[T]], *args: Any, count: int = 200, first: int = 0, **options: Any
) -> Iterator[SimulationReport[T]]:
    """`count` runs of the program, each under another interleaving. `options` as for `simulate`."""
    for seed in range(first, first + count):
        yield simulate(program, *args, seed=seed, **options)


def every_cancellation(
    program: Callable[..., Awaitable[T]], *args: Any, seed: int = 0, stride: int = 1, **options: Any
) -> Iterator[SimulationReport[T]]:
    """The program cancelled at its first task step, then at its second, and so on, until a run ends before its cancellation.

    `stride` > 1 tries every stride-th step. `program` must make everything it needs anew each time.
    """
    step = 1
    while True:
        report = simulate(program, *args, seed=seed, cancel_at=step, **options)
        yield report
        if report.steps < step:
            return
        step += stride
