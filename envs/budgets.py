"""Time budgets of a group's phases, and the count of those that ran out.

    provision        turn, turn, ...          grading           teardown
    make_envs,  ──▶  step of each answer  ──▶ group_rewards ──▶ cleanup
    reset            (sampling is not in it)

A budget ends what keeps to anyio: whatever waits. Work that holds the event loop or a thread cannot be ended; it belongs into a worker process
(`engine.runtime.WorkerPool`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import attrs

Phase = Literal["provision", "turn", "grading", "teardown", "episode"]
"""What a budget is for; `episode` is the wall clock over all turns of one member."""


class BudgetOverrun(TimeoutError):
    """A phase took longer than its budget."""

    def __init__(self, phase: Phase, what: str, seconds: float) -> None:
        super().__init__(f"{what} did not finish within {seconds:g} s")
        self.phase = phase
        self._made_of = phase, what, seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of


@contextmanager
def within(seconds: float | None, phase: Phase, what: str, began: float | None = None) -> Iterator[None]:
    """Raises BudgetOverrun, saying what was too slow, when the block takes longer than `seconds` (since `began`); None: no limit."""
    if seconds is None:
        yield
        return
    with anyio.CancelScope(deadline=(anyio.current_time() if began is None else began) + seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise BudgetOverrun(phase, what, seconds)


@attrs.define
class Tally:
    """What went wrong while one group was played, over all its attempts."""

    retries: int = 0
    overruns: dict[Phase, int] = attrs.field(factory=dict)

    def overrun(self, phase: Phase) -> None:
        """Counts a phase that ran out of its budget."""
        self.overruns[phase] = self.overruns.get(phase, 0) + 1

    def failed(self, error: BaseException) -> None:
        """Counts the budgets that ran out among an error, or a group of errors, that ended an attempt."""
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                self.failed(inner)
        elif isinstance(error, BudgetOverrun):
            self.overrun(error.phase)

    def metrics(self) -> Mapping[str, float]:
        """`retries` and `timeouts/<phase>`, those that are not 0."""
        found = {f"timeouts/{phase}": float(count) for phase, count in self.overruns.items()}
        if self.retries:
            found["retries"] = float(self.retries)
        return found
