"""Learning rates over a run: a shape, a warm-up, and a floor; for supervised training and RL alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import attrs

ScheduleShape = Literal["constant", "linear", "cosine"]


@attrs.frozen
class LearningRateSchedule:
    """The learning rate at each optimizer step, as a multiple of its peak.

    It rises in a straight line over `warmup_steps`, then follows its shape down to `floor`, which it would reach at `total_steps`: one step behind
    the last, so no step is spent on a rate of zero.
    """

    shape: ScheduleShape = "constant"
    warmup_steps: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    floor: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """Share of the peak that is left at the end; a constant shape has no end."""

    def __attrs_post_init__(self) -> None:
        if self.shape not in ("constant", "linear", "cosine"):
            raise ValueError(f"no learning-rate schedule is called {self.shape!r}; there are constant, linear, cosine")

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for optimizer step `step` of 0 … total_steps − 1. The first of w warm-up steps has 1/(w + 1), the step after them 1."""
        if not 0 <= step < total_steps:
            raise ValueError(f"step {step} is not one of the run's {total_steps}, which count from 0")
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / (total_steps - self.warmup_steps)
        if self.shape == "constant":
            return 1.0
        fall = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.floor + (1 - self.floor) * fall

    def over(self, total_steps: int) -> Callable[[int], float]:
        """The multiplier of a run of `total_steps` as a function of the step alone, as training programs take it."""
        return functools.partial(self.multiplier, total_steps=total_steps)
