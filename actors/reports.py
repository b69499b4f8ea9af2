"""What the logger is told. Reports leave in the order in which they were sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from engine.backends.ports import Pending


@attrs.frozen
class StepReport:
    """An optimizer step was taken."""

    row: Mapping[str, float]
    """Metrics; `step` counts from 0."""
    events: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()


@attrs.frozen
class EvaluationReport:
    """An evaluation is finished."""

    version: int
    """Optimizer steps behind the weights it evaluated."""
    name: str
    metrics: Mapping[str, float]


@attrs.frozen
class CheckpointReport:
    """A checkpoint was cut: its parts are submitted or held, and want writing."""

    version: int
    directory: Path
    submitted: Sequence[Pending[None]]
    """Writes that the backend does itself."""
    write: Callable[[Path], None]
    """Writes the rest; called off the event loop."""
    expires: bool = False
    """Whether its weights have a time to live."""


@attrs.frozen
class Note:
    """A line for people."""

    text: str


Report = StepReport | EvaluationReport | CheckpointReport | Note


class Observer(Protocol):
    """Watches a run, as a display does. Calls come from the event loop and must be quick."""

    def step(self, row: Mapping[str, float]) -> None:
        """A step's metrics."""
        ...

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """An evaluation's metrics; `step` is the version it evaluated."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...
