"""What a grader gives: a score, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import attrs

Failure = Literal["budget", "died", "error"]
"""Why grading itself failed: it took longer than it may, its process died, it raised."""


@attrs.frozen
class Grade:
    """How good an answer is, usually from 0 to 1."""

    score: float
    reason: str = ""
    """For people: what was compared, and how it came out."""
    details: Mapping[str, Any] = attrs.field(factory=dict)
    """JSON values for logs: what was taken for the answer, scores of the parts."""
    failure: Failure | None = None
    """Grading failed; the score is then that of a wrong answer."""

    @property
    def metrics(self) -> dict[str, float]:
        """`grading_failed`: 1 where grading itself failed."""
        return {"grading_failed": float(self.failure is not None)}


class Grader(Protocol):
    """Compares an answer with a reference."""

    async def grade(self, answer: str, reference: str) -> Grade:
        """How good the answer is. What the answer says cannot make this raise."""
        ...
