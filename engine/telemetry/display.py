"""A run as it goes: a live panel on a terminal, one short line a step anywhere else.

    with display.open(total_steps=40, title="rl_loop") as live:
        live.step(row); live.evaluation(step, name, metrics); live.note("checkpoint 20 saved")

It is an observer of a run: nothing but the metrics of each step (names as in metrics.jsonl). No threads: the panel is drawn inside these calls, at most ten
times a second, in a few milliseconds. rich is imported only where there is a terminal.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, Protocol

from engine.telemetry.figures import (
    REWARD,
    Progress,
    busy,
    clock,
    distances,
    evaluation_parts,
    learning,
    printable,
    relative,
    short,
)


class Display(Protocol):
    """What `open` gives."""

    def step(self, row: Mapping[str, float]) -> None:
        """A step's metrics; `step` counts from 0."""
        ...

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """An evaluation of the weights behind `step` optimizer steps."""
        ...

    def note(self, text: str) -> None:
        """A line about something that happened."""
        ...


silent: ContextVar[bool] = ContextVar("callsheet_silent", default=False)
"""Whether what runs in this context shows nothing: a recipe inside another program, whose terminal is its own."""


@contextmanager
def open(total_steps: int, title: str, *, every: int = 1, stream: IO[str] | None = None) -> Iterator[Display]:  # noqa: A001  (read as display.open)
    """Shows a run of `total_steps` steps until the block ends.

    `every`: steps to a line where there is no terminal; the first and the last always have one. `stream`: default stdout. Live where it is a terminal that can move its cursor (`TERM` is not "dumb"); colours unless `NO_COLOR` is set.
    """
    if silent.get():
        yield Nothing()
        return
    stream = stream or sys.stdout
    if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        from engine.telemetry.live_panel import LivePanel

        with LivePanel(Progress(total_steps, title), stream) as panel:
            yield panel
    else:
        yield Lines(Progress(total_steps, title), stream, every)


class Nothing:
    """Shows nothing."""

    def step(self, row: Mapping[str, float]) -> None:
        """Nothing."""

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Lines:
    """One line a step, columns aligned, plain ASCII: for logs, pipes and dumb terminals."""

    def __init__(self, progress: Progress, stream: IO[str], every: int = 1) -> None:
        self._progress = progress
        self._every = every
        self._begun = False
        self._stream = stream
        self._write(f"{progress.title}: {progress.total} steps")

    def step(self, row: Mapping[str, float]) -> None:
        """Writes the step's line."""
        progress = self._progress
        progress.add(row)
        if self._begun and progress.done % self._every and progress.done < progress.total:
            return
        self._begun = True
        digits = len(str(progress.total))
        left = clock(progress.remaining) if progress.done < progress.total else "0:00"
        cells = [
            f"step {progress.done:>{digits}}/{progress.total}",
            *_cells(row),
            f"{clock(progress.elapsed):>5}  ETA {left:>5}",
            *_extras(row),
        ]
        self._write("  ".join(cells))

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Writes the evaluation's line."""
        found = ", ".join(f"{key} {value}" for key, value in evaluation_parts(metrics))
        self._write(f"  evaluation '{name}' after step {step}: {found}")

    def note(self, text: str) -> None:
        """Writes the line."""
        self._write(f"  {text}")

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = printable(text).encode(encoding, "replace").decode(encoding)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more (`| head`): no reason to end a training run
            self._stream = io.StringIO()


def _cells(row: Mapping[str, float]) -> Iterator[str]:
    """Columns that every line of a run has, as the run has such metrics."""
    if relative(row):
        yield f"ties {_fixed(row.get('env/all/ties'), '4.0%')}"
    elif REWARD in row:
        yield f"reward {_fixed(row[REWARD], '6.3f')}"
    elif found := learning(row):
        yield f"{found[0]} {found[1]:8.4f}"
    for name, distance in distances(row):
        yield f"{name} {_fixed(distance, '6.3f')}"
    for name, share in busy(row):
        yield f"{name} {share:4.0%}"
    if row.get("tokens/per_second"):
        yield f"{short(row['tokens/per_second']):>5} tok/s"


def _extras(row: Mapping[str, float]) -> Iterator[str]:
    """What not every step has."""
    if row.get("staleness/max"):
        yield f"stale {_fixed(row.get('staleness/mean', math.nan), '.1f')} (max {row['staleness/max']:.0f})"
    for key in ("filtered", "failed"):
        if row.get(f"groups/{key}"):
            yield f"{key} {row[f'groups/{key}']:.0f}"


def _fixed(value: float | None, form: str) -> str:
    """NaN for a missing number, in the same width."""
    return format(math.nan if value is None else value, form)
