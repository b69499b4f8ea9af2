"""Hooks through which a program says what happens when: spans, instants, counters.

Times are seconds of anyio's clock, so that a simulated run has a timeline too.
"""

from __future__ import annotations

from typing import Protocol


class Tracer(Protocol):
    """Receives the timeline. Calls must be cheap: they run inside the actors."""

    def span(self, track: str, name: str, start: float, end: float, **args: object) -> None:
        """Something that took from `start` to `end` on `track` (an actor, a ticket, a slot)."""
        ...

    def instant(self, track: str, name: str, at: float, **args: object) -> None:
        """Something that happened at one moment."""
        ...

    def counter(self, name: str, at: float, **values: float) -> None:
        """A sampled quantity, such as a queue's depth."""
        ...


class NullTracer:
    """Keeps nothing."""

    def span(self, track: str, name: str, start: float, end: float, **args: object) -> None:
        """Ignored."""

    def instant(self, track: str, name: str, at: float, **args: object) -> None:
        """Ignored."""

    def counter(self, name: str, at: float, **values: float) -> None:
        """Ignored."""
