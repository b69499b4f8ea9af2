"""Charts over steps as inline SVG: no script, no external resource, colours by CSS variables so that a page can be light or dark.

A chart scales with its container. Points that are no numbers are gaps. More points than pixels are thinned out, extremes kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import accumulate
from typing import Literal

import attrs

from engine.telemetry.figures import short

SMALL, MEDIUM, WIDE = (400, 190), (560, 280), (1100, 330)
"""Sizes of a chart, in units that are pixels where it is drawn at its natural size."""
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 34
MOST_POINTS = 400
MANY = 120
"""Points from which a noisy line is drawn thinner, or as a trend."""

STYLE = """
.chart{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
.chart text{fill:var(--muted)}
.chart .grid{stroke:var(--grid);stroke-width:1}
.chart .axis{stroke:var(--axis);stroke-width:1}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .faint{stroke-width:1.25;opacity:.4}
.chart .thin{stroke-width:1}
.chart .area{stroke:none;opacity:.8}
.chart .dot{stroke:var(--card);stroke-width:1.5}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.chart .line{stroke:var(--c)}.chart .area,.chart .dot{fill:var(--c)}
"""
LIGHT = "--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--muted:#5b6470;--grid:#e8ebef;--axis:#c3c9d1;--rule:#e1e5ea;--good:#1a7f4b;--bad:#b3372f;--s0:#2468b4;--s1:#c8651b;--s2:#2c8a63;--s3:#a8457f;--s4:#6d5bb5;--s5:#7a828c"
DARK = "--bg:#14171b;--card:#1c2026;--ink:#e4e8ed;--muted:#98a2ae;--grid:#2a3038;--axis:#454d58;--rule:#2c323a;--good:#5ec08c;--bad:#ea8078;--s0:#6ea8ec;--s1:#eb9a5c;--s2:#63c49a;--s3:#dd86b9;--s4:#a898ea;--s5:#949eab"


@attrs.frozen
class Series:
    """Values by step."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    """NaN where there is none."""
    mark: Literal["line", "thin", "faint", "dots", "area"] = "line"
    """area: stacked on the areas before it."""
    colour: int | None = None
    """0 to 5; None: by position."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(math.isfinite(y) for y in self.ys)


@attrs.frozen
class Axis:
    """One axis: its range, and where its marks are."""

    low: float
    high: float
    ticks: Sequence[float]


@attrs.frozen
class Plane:
    """Where values lie in a drawing."""

    size: tuple[int, int]
    x_axis: Axis
    y_axis: Axis

    @property
    def right(self) -> float:
        """Where the plot ends."""
        return self.size[0] - RIGHT

    @property
    def base(self) -> float:
        """Where its lower edge is."""
        return self.size[1] - BOTTOM

    def x(self, value: float) -> float:
        """Distance from the left."""
        return LEFT + (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low) * (self.right - LEFT)

    def y(self, value: float) -> float:
        """Distance from the top."""
        return self.base - (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low) * (self.base - TOP)


def chart(
    title: str,
    series: Sequence[Series],
    *,
    y_range: tuple[float | None, float | None] = (None, None),
    label: Callable[[float], str] | None = None,
    x_name: str = "step",
    size: tuple[int, int] = SMALL,
) -> str:
    """An SVG of the series that hold anything; empty when none does. `y_range` fixes an end of the axis, None fits it to the values."""
    drawn = [
        attrs.evolve(one, colour=position % 6 if one.colour is None else one.colour)
        for position, one in enumerate(series)
    ]
    drawn = [one for one in drawn if not one.empty]
    if not drawn:
        return ""
    label = label or plain
    stacks = _stacked(drawn)
    tops = [y for one, (_, upper) in zip(drawn, stacks, strict=True) for y in (upper if one.mark == "area" else one.ys)]
    xs = [x for one in drawn for x in one.xs]
    floor = 0.0 if any(one.mark == "area" for one in drawn) else y_range[0]
    plane = Plane(size, axis(xs, whole=True), axis(tops, low=floor, high=y_range[1]))
    parts = [
        f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title, quote=True)}" xmlns="http://www.w3.org/2000/svg">',
        *_frame(plane, label, x_name),
    ]
    for one, (lower, upper) in zip(drawn, stacks, strict=True):
        parts += _marks(one, lower, upper, plane, label)
    parts.append("</svg>")
    return "".join(parts)


def plain(value: float) -> str:
    """A mark of an axis: `0.25`, `12.5k`, `2e-5`."""
    if abs(value) >= 1000:
        return short(value)
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.2g}".partition("e") if abs(value) < 1e-4 else f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def axis(values: Sequence[float], *, low: float | None = None, high: float | None = None, whole: bool = False) -> Axis:
    """A range with round marks that holds the finite values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    least = min(finite) if low is None else min(low, *finite)
    most = max(finite) if high is None else max(high, *finite)
    if most - least <= 1e-9 * max(abs(least), abs(most)):  # one value, as far as floats can tell
        margin = max(0.5, abs(least) * 1e-3) if whole else abs(least) * 0.1 or 1.0
        if whole:
            return Axis(least - margin, most + margin, [least])
        least, most = (least if low == least else least - margin), most + margin
    step = _round_step((most - least) / 5)
    if whole:
        step = max(1.0, step)
        start = math.ceil(least / step) * step
        return Axis(least, most, _ticks(start, most, step))
    bottom = least if low == least else math.floor(least / step + 1e-9) * step
    top = most if high == most else math.ceil(most / step - 1e-9) * step
    return Axis(bottom, top, _ticks(math.ceil(bottom / step - 1e-9) * step, top, step))


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((factor * size for factor in (1, 2, 2.5, 5) if factor * size >= rough * 0.999), 10 * size)


def _ticks(start: float, end: float, step: float) -> list[float]:
    return [start + index * step for index in range(int((end - start) / step + 1e-6) + 1)]


def _frame(plane: Plane, label: Callable[[float], str], x_name: str) -> Iterator[str]:
    for tick in plane.y_axis.ticks:
        y = plane.y(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{plane.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(label(_clean(tick)))}</text>'
    base = plane.base
    yield f'<line class="axis" x1="{LEFT}" x2="{plane.right}" y1="{base}" y2="{base}"/>'
    for tick in plane.x_axis.ticks:
        yield f'<text x="{plane.x(tick):.1f}" y="{base + 16}" text-anchor="middle">{escape(short(_clean(tick)))}</text>'
    yield f'<text x="{plane.right}" y="{base + 31}" text-anchor="end">{escape(x_name)}</text>'


def _clean(tick: float) -> float:
    """Without the digits that adding up has brought in."""
    return float(f"{tick:.10g}") + 0.0


def _stacked(series: Sequence[Series]) -> list[tuple[list[float], list[float]]]:
    """For each series its lower and upper edge: areas lie on the areas before them, by position; anything else has no lower edge."""
    ground: dict[float, float] = {}
    edges: list[tuple[list[float], list[float]]] = []
    for one in series:
        if one.mark != "area":
            edges.append(([], list(one.ys)))
            continue
        lower = [ground.get(x, 0.0) for x in one.xs]
        upper = [base + (y if math.isfinite(y) else 0.0) for base, y in zip(lower, one.ys, strict=True)]
        ground.update(zip(one.xs, upper, strict=True))
        edges.append((lower, upper))
    return edges


def _marks(
    one: Series,
    lower: Sequence[float],
    upper: Sequence[float],
    plane: Plane,
    label: Callable[[float], str],
) -> Iterator[str]:
    name, colour = escape(one.name), f"s{one.colour}"
    if one.mark == "dots":
        yield f'<g class="{colour}">'
        for x, y in _thin(one.xs, one.ys):
            if math.isfinite(y):
                tip = f"{name}, {short(x)}: {escape(label(y))}"
                yield f'<circle class="dot" cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="4.5"><title>{tip}</title></circle>'
        yield "</g>"
    elif one.mark == "area":
        over, under = list(_thin(one.xs, upper)), list(_thin(one.xs, lower))[::-1]
        if len(over) == 1:  # a single step gets a width
            over = [(over[0][0] + side, over[0][1]) for side in (-0.3, 0.3)]
            under = [(under[0][0] + side, under[0][1]) for side in (0.3, -0.3)]
        points = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in [*over, *under])
        yield f'<polygon class="area {colour}" points="{points}"><title>{name}</title></polygon>'
    else:
        kind = "line" if one.mark == "line" else f"line {one.mark}"
        path, alone = _path(list(_thin(one.xs, one.ys)), plane)
        yield f'<path class="{kind} {colour}" d="{path}"><title>{name}</title></path>'
        yield from (
            f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{name}</title></circle>'
            for x, y in alone
        )


def _path(points: Sequence[tuple[float, float]], plane: Plane) -> tuple[str, list[tuple[float, float]]]:
    """Lines between neighbours that are numbers, and the places of those that have no such neighbour."""
    pieces: list[str] = []
    alone: list[tuple[float, float]] = []
    known = [False, *(math.isfinite(y) for _, y in points), False]
    for index, (x, y) in enumerate(points, 1):
        if not known[index]:
            continue
        at = (plane.x(x), plane.y(y))
        if not known[index - 1] and not known[index + 1]:
            alone.append(at)
        else:
            pieces.append(f"{'L' if known[index - 1] else 'M'}{at[0]:.1f} {at[1]:.1f}")
    return "".join(pieces), alone


def _thin(xs: Sequence[float], ys: Sequence[float]) -> Iterator[tuple[float, float]]:
    """At most about MOST_POINTS points: of each stretch its least and its greatest."""
    if len(xs) <= MOST_POINTS:
        yield from zip(xs, ys, strict=True)
        return
    stretch = math.ceil(len(xs) * 2 / MOST_POINTS)
    for start in range(0, len(xs), stretch):
        indices = range(start, min(start + stretch, len(xs)))
        finite = [index for index in indices if math.isfinite(ys[index])]
        if not finite:
            yield xs[start], math.nan
            continue
        extremes = {min(finite, key=lambda index: ys[index]), max(finite, key=lambda index: ys[index])}
        for index in sorted(extremes):
            yield xs[index], ys[index]


def legend(series: Sequence[Series]) -> str:
    """What the colours mean, as HTML; empty for a single series."""
    shown = [(position % 6 if one.colour is None else one.colour, one) for position, one in enumerate(series)]
    shown = [(colour, one) for colour, one in shown if not one.empty and one.mark != "faint"]
    if len(shown) < 2:
        return ""
    entries = (
        f'<span class="key s{colour}"><i class="{one.mark}"></i>{escape(one.name)}</span>' for colour, one in shown
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """The mean of the `span` values around each, of fewer towards the ends; NaN where there is none."""
    half = span // 2
    known = [math.isfinite(value) for value in values]
    sums = list(
        accumulate((value if is_known else 0.0 for value, is_known in zip(values, known, strict=True)), initial=0.0)
    )
    counts = list(accumulate(known, initial=0))
    result = []
    for index in range(len(values)):
        first, last = max(0, index - half), min(len(values), index + half + 1)
        count = counts[last] - counts[first]
        result.append((sums[last] - sums[first]) / count if count else math.nan)
    return result


def with_trend(one: Series) -> list[Series]:
    """A line of many points as its mean over neighbours in front of the points themselves."""
    if one.mark != "line" or len(one.xs) < MANY:
        return [one]
    return [attrs.evolve(one, mark="faint"), attrs.evolve(one, ys=smoothed(one.ys, len(one.xs) // 12 | 1))]
