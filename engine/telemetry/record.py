"""What a run directory says, as far as it can be read: at any moment of a run, and after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from engine.telemetry.figures import LARGEST

Row = Mapping[str, Any]


@attrs.frozen
class RunRecord:
    """What a run directory says."""

    name: str
    config: Mapping[str, Any] | None
    rows: Sequence[Row]
    """Metrics, a row a step, in order of steps."""
    evaluations: Sequence[Row]
    first_samples: Sequence[Row]
    """Samples of the first step that has any."""
    last_samples: Sequence[Row]


def read_run(directory: Path) -> RunRecord:
    """Everything readable in a run directory."""
    rows = sorted(
        (row for row in _lines(directory / "metrics.jsonl") if _is_number(row.get("step"))),
        key=lambda row: float(row["step"]),
    )
    first: list[Row] = []
    last: list[Row] = []
    for sample in _lines(directory / "samples.jsonl"):
        if not first or sample.get("step") == first[0].get("step"):
            first.append(sample)
        elif last and sample.get("step") == last[0].get("step"):
            last.append(sample)
        else:
            last = [sample]
    evaluations = [
        row
        for row in _lines(directory / "evaluations.jsonl")
        if _is_number(row.get("step")) and isinstance(row.get("metrics"), dict)
    ]
    return RunRecord(directory.resolve().name, _config(directory / "config.json"), rows, evaluations, first, last)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of a file."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _config(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
