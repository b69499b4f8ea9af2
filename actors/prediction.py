"""Predicted lengths: start the longest completions first, and a step's tail gets shorter.

A predictor only orders work that is waiting for a slot; it never changes what is sampled or trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs


class LengthPredictor(Protocol):
    """Predicts how many tokens a group's longest member will take."""

    def predict(self, problem: int, tags: tuple[str, ...]) -> float | None:
        """Tokens, or None when nothing is known."""
        ...

    def observe(self, problem: int, tags: tuple[str, ...], tokens: int) -> None:
        """What a group's longest member took in the end."""
        ...

    def state(self) -> Mapping[str, tuple[int, float]]:
        """For a checkpoint."""
        ...

    def restore(self, state: Mapping[str, tuple[int, float]]) -> None:
        """Takes a state back."""
        ...


@attrs.define
class RunningMean:
    """The default predictor: the mean over what was seen of this very problem, else of its tags, else nothing."""

    _means: dict[str, tuple[int, float]] = attrs.field(factory=dict)

    def predict(self, problem: int, tags: tuple[str, ...]) -> float | None:
        known = self._means.get(f"problem {problem}") or self._means.get(f"tags {tags}")
        return None if known is None else known[1]

    def observe(self, problem: int, tags: tuple[str, ...], tokens: int) -> None:
        for key in (f"problem {problem}", f"tags {tags}"):
            count, mean = self._means.get(key, (0, 0.0))
            self._means[key] = (count + 1, mean + (tokens - mean) / (count + 1))

    def state(self) -> Mapping[str, tuple[int, float]]:
        return dict(self._means)

    def restore(self, state: Mapping[str, tuple[int, float]]) -> None:
        self._means = dict(state)
