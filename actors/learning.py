"""What a trainer is given: a feed of data, how to learn from it, and a way to be asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from actors.objective import Objective
from actors.reports import StepReport
from engine.backends.values import AdamParams, Datum, ForwardBackwardResult


class Feed(Protocol):
    """The trainer's supply. All calls come from the trainer."""

    @property
    def minibatches(self) -> int:
        """Parts in which a step is submitted."""
        ...

    async def next_minibatch(self, part: int) -> list[Datum]:
        """The step's `part`-th minibatch; empty when nothing is left to train on."""
        ...

    def settle(self) -> SettledStep:
        """A step is trained: its work is settled. Part of the boundary, so it must neither wait nor take long."""
        ...

    @property
    def waited(self) -> float:
        """Seconds that `next_minibatch` waited for something to train on, so far."""
        ...


class SettledStep(Protocol):
    """A step behind its boundary. What it says about itself may take its time."""

    async def report(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> StepReport:
        """Metrics, journal and samples of the step. `results` belong to its minibatches, `data` is all they held, in order."""
        ...


@attrs.define
class StopRequest:
    """Asks a run to end after the step under way, with a checkpoint."""

    requested: bool = False

    def __call__(self) -> None:
        self.requested = True


@attrs.frozen
class LearningSettings:
    """How a step learns."""

    objective: Objective
    optimizer: AdamParams = attrs.field(factory=AdamParams)
    learning_rate: Callable[[int], float] | None = None
    """Factor on the optimizer's learning rate by step (from 0); None: 1."""

    def adam(self, step: int) -> AdamParams:
        """The optimizer's parameters of a step."""
        if self.learning_rate is None:
            return self.optimizer
        return attrs.evolve(self.optimizer, learning_rate=self.optimizer.learning_rate * self.learning_rate(step))
