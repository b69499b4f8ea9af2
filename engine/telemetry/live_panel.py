"""The live panel on a terminal, drawn with rich inside the calls that bring news."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from engine.telemetry.figures import (
    PLAIN_SPARKS,
    REWARD,
    SPARKS,
    Progress,
    busy,
    clock,
    distances,
    evaluation_parts,
    learning,
    number,
    printable,
    relative,
    short,
    sparkline,
)

REDRAW = 0.1
"""Seconds between two drawings at least."""


class LivePanel:
    """The last step at a glance; notes and evaluations scroll by above it. A context manager."""

    def __init__(self, progress: Progress, stream: IO[str], *, width: int | None = None) -> None:
        self._progress = progress
        self._console = Console(file=stream, width=width, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._render)
        self._drawn = -math.inf

    def step(self, row: Mapping[str, float]) -> None:
        """Draws the step, if the last drawing is not too recent."""
        self._progress.add(row)
        self._draw(now=self._progress.done >= self._progress.total)

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Prints the evaluation above the panel."""
        line = Text(f"evaluation '{printable(name)}' after step {step}: ", "dim")
        for index, (key, value) in enumerate(evaluation_parts(metrics)):
            line.append(f"{', ' if index else ''}{printable(key)} ")
            line.append(value, "bold not dim")
        self._print(line)

    def note(self, text: str) -> None:
        """Prints the line above the panel."""
        self._print(Text(printable(text), "dim"))

    def _print(self, line: Text) -> None:
        try:
            self._console.print(line)
        except OSError:
            return
        self._draw(now=False)

    def _draw(self, *, now: bool) -> None:
        moment = time.monotonic()
        if not now and moment - self._drawn < REDRAW:
            return
        self._drawn = moment
        with suppress(OSError):  # the terminal is gone; the run need not be
            self._live.refresh()

    def _render(self) -> RenderableType:
        plain = not self._console.encoding.lower().startswith("utf")
        return Group(*panel_lines(self._progress, self._console.width, plain=plain))

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(now=True)
        self._live.stop()


def panel_lines(progress: Progress, width: int, *, plain: bool = False) -> list[Text]:
    """The panel, each line at most `width` columns. `plain`: ASCII alone."""
    blocks = [
        _head(progress, width, plain),
        _reward(progress, width, plain),
        _busy(progress.row, plain),
        _details(progress.row),
    ]
    lines = [line for block in blocks for line in _packed(block, width)]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop" if plain else "ellipsis"
    return lines


def _packed(pieces: Iterable[Text], width: int) -> Iterator[Text]:
    """As many pieces to a line as it takes."""
    line = Text()
    for piece in pieces:
        if line and len(line) + 3 + len(piece) > width:
            yield line
            line = Text()
        line = Text("   ").join([line, piece]) if line else piece
    if line:
        yield line


def _head(progress: Progress, width: int, plain: bool) -> Iterator[Text]:
    share = min(1.0, progress.done / progress.total) if progress.total else 1.0
    title = Text(printable(progress.title), "bold")
    title.append(f"  step {progress.done}/{progress.total}", "not bold")
    times = Text(f"{clock(progress.elapsed)} elapsed, ETA {clock(progress.remaining)}", "dim")
    if progress.done >= progress.total:
        times = Text(f"{clock(progress.elapsed)} elapsed", "dim")
    room = width - 11 - len(title) - len(times)
    bar = _bar(share, min(30, room if room >= 10 else max(4, width - 5)), plain, "cyan")
    bar.append(f" {share:4.0%}")
    yield from (title, bar, times)


def _reward(progress: Progress, width: int, plain: bool) -> Iterator[Text]:
    row = progress.row
    if not progress.rewards:
        yield Text("waiting for the first step", "dim")
        return
    if relative(row):
        yield Text(f"ties {_finite(row.get('env/all/ties')):.0%}")
    elif REWARD in row:
        line = Text("reward ")
        line.append(f"{_finite(row[REWARD]):.3f}", "bold green")
        finite = [reward for reward in progress.rewards if math.isfinite(reward)]
        line.append(
            f"  {sparkline(progress.rewards, min(30, max(4, width - 16)), PLAIN_SPARKS if plain else SPARKS)}", "green"
        )
        yield line
        if finite:
            yield Text(f"first {finite[0]:.3f}, best {max(finite):.3f}", "dim")
    for name, distance in distances(row):
        yield Text(f"{name} {number(distance)}")
    if found := learning(row):
        yield Text(f"{found[0]} {number(found[1])}", "dim" if REWARD in row else "")


def _busy(row: Mapping[str, float], plain: bool) -> Iterator[Text]:
    for name, share in busy(row):
        line = Text(f"{name} ")
        line.append_text(_bar(share if math.isfinite(share) else 0.0, 10, plain, "blue"))
        line.append(f" {share:4.0%} busy")
        yield line
    if row.get("tokens/per_second"):
        line = Text(short(row["tokens/per_second"]), "bold")
        line.append(" tokens/s", "not bold")
        yield line


def _details(row: Mapping[str, float]) -> Iterator[Text]:
    if row.get("staleness/max"):
        yield Text(f"staleness {number(row.get('staleness/mean', math.nan))}, max {row['staleness/max']:.0f}", "dim")
    if "groups/trained" in row:
        line = Text(
            f"groups {row['groups/trained']:.0f} trained, {row.get('groups/filtered', 0):.0f} filtered, ", "dim"
        )
        failed = row.get("groups/failed", 0)
        line.append(f"{failed:.0f} failed", "bold red not dim" if failed else "")
        yield line
    for label, key in (
        ("grad norm", "optim/grad_norm"),
        ("KL", "optim/kl_sample_train_v1"),
        ("entropy", "optim/entropy"),
    ):
        if key in row:
            yield Text(f"{label} {number(_finite(row[key]))}", "dim")


def _bar(share: float, width: int, plain: bool, style: str) -> Text:
    filled = round(max(0.0, min(1.0, share)) * width)
    full, rest = ("#", "-") if plain else ("━", "─")
    bar = Text(full * filled, style)
    bar.append(rest * (width - filled), "dim")
    return bar


def _finite(value: float | None) -> float:
    """NaN for null."""
    return math.nan if value is None else value
