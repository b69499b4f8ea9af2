"""Which checkpoints stay on disk: the newest few, every so many steps, and the best by an evaluation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

_at_least_one: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen
class Best:
    """By which measure a checkpoint is the best one."""

    metric: str = attrs.field(validator=attrs.validators.min_len(1))
    """A metric of an evaluation, as `<evaluation>/<metric>`."""
    highest: bool = True
    """Whether more is better."""

    def value(self, rows: Sequence[Mapping[str, Any]], step: int) -> float | None:
        """The measure of a step, from rows of evaluations.jsonl; None: it was not evaluated, or gave no number."""
        for row in reversed(rows):
            prefix = f"{row['name']}/"
            if row["step"] == step and self.metric.startswith(prefix):
                value = row["metrics"].get(self.metric.removeprefix(prefix))
                if isinstance(value, (int, float)) and math.isfinite(value):
                    return float(value)
        return None

    def find(self, rows: Sequence[Mapping[str, Any]], steps: Collection[int]) -> int | None:
        """The best of these steps, the earliest where several are; None: none of them was evaluated."""
        values = {step: self.value(rows, step) for step in steps}
        measured = {step: value for step, value in values.items() if value is not None}
        sign = -1 if self.highest else 1
        return min(measured, key=lambda step: (sign * measured[step], step), default=None)

    def awaits(self, step: int, pending: Collection[tuple[int, str]]) -> bool:
        """Whether an evaluation is still to come that may give this step its measure."""
        return any(version == step and self.metric.startswith(f"{name}/") for version, name in pending)


@attrs.frozen
class Keeping:
    """What a run keeps of its checkpoints. The newest always stays."""

    last: int | None = attrs.field(default=None, validator=_at_least_one)
    """So many of the newest; None: all."""
    every: int | None = attrs.field(default=None, validator=_at_least_one)
    """And those whose step is a multiple of this."""
    best: Best | None = None
    """And the best one."""

    def superfluous(
        self, steps: Sequence[int], rows: Sequence[Mapping[str, Any]], pending: Collection[tuple[int, str]]
    ) -> list[int]:
        """Which of the steps (newest first) go, given the evaluations that were reported and those still to come."""
        if self.last is None:
            return []
        best = self.best.find(rows, steps) if self.best is not None else None
        return [
            step
            for step in steps[self.last :]
            if step != best
            and not (self.every is not None and step % self.every == 0)
            and not (self.best is not None and self.best.awaits(step, pending))
        ]
