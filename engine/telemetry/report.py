"""A run at a glance: `report.html`, one file without script or external resource, and `reward.svg`.

Both are made from what lies in the run directory, at any moment of a run and after a crash: missing files and keys, damaged lines and NaN are left out.
Everything that comes from a run is text here, however much it looks like HTML: models write what they like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.telemetry.charts import DARK, LIGHT, MANY, MEDIUM, STYLE, WIDE, Series, chart, legend, smoothed, with_trend
from engine.telemetry.figures import REWARD, clock, evaluation_reward, number, short, value_of
from engine.telemetry.record import Row, RunRecord, read_run
from engine.telemetry.report_page import page, samples_section, table

REPORT = "report.html"
PLOT = "reward.svg"
UNSEEN = dict.fromkeys(
    [
        *(code for code in range(32) if chr(code) not in "\n\t"),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ],
    "\N{REPLACEMENT CHARACTER}",
)
"""Control characters, which XML forbids, and those that turn the direction of writing."""


def write_report(run_directory: Path | str) -> Path:
    """Writes `report.html` into the run directory, and returns its path. Raises OSError where that cannot be written."""
    directory = Path(run_directory)
    return _write(directory / REPORT, report_html(read_run(directory)))


def write_reward_plot(run_directory: Path | str) -> Path:
    """Writes `reward.svg` into the run directory, and returns its path. Raises OSError where that cannot be written."""
    directory = Path(run_directory)
    record = read_run(directory)
    return _write(directory / PLOT, reward_plot_svg(record.rows, record.evaluations, title=record.name))


def _write(path: Path, text: str) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.translate(UNSEEN).encode("utf-8", "replace"))  # an answer may hold half a surrogate pair
    partial.replace(path)
    return path


# ---- charts


def reward_plot_svg(rows: Sequence[Row], evaluations: Sequence[Row] = (), *, title: str = "") -> str:
    """The mean reward over the steps, with its moving average and the evaluations, as an SVG file that is light or dark as its viewer is."""
    series = reward_series(rows, evaluations)
    width, height = 760, 300
    drawing = chart("Mean reward over the steps", series, y_range=_reward_range(series), size=(width, height))
    if not drawing:
        drawing = f'<svg viewBox="0 0 {width} {height}" class="chart"><text x="52" y="120">no step has been taken yet</text></svg>'
    keys = [one for one in series if not one.empty and one.mark != "faint"]
    key_marks = "".join(
        f'<circle class="s{one.colour}" cx="{66 + index * 200}" cy="{height + 46}" r="4.5" style="fill:var(--c)"/>'
        f'<text class="k" x="{77 + index * 200}" y="{height + 50}">{escape(one.name)}</text>'
        for index, one in enumerate(keys[:3])
    )
    head = escape(f"Mean reward{f', {title}' if title else ''}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 20} {height + 66}" width="{width + 20}" height="{height + 66}">'
        f"<style>svg{{{LIGHT}}}@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}{STYLE}"
        "text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif}.h{font-size:14px;font-weight:600;fill:var(--ink)}"
        ".k{font-size:12px;fill:var(--muted)}</style>"
        f'<rect width="100%" height="100%" fill="var(--card)"/><text class="h" x="16" y="24">{head}</text>'
        f'<svg x="10" y="34" width="{width}" height="{height}">{drawing}</svg>{key_marks}</svg>\n'
    )


def reward_series(rows: Sequence[Row], evaluations: Sequence[Row]) -> list[Series]:
    """Reward of each step, its moving average where there are enough, and each evaluation's reward."""
    steps, rewards = [value_of(row, "step") for row in rows], [value_of(row, REWARD) for row in rows]
    if len(rows) >= 12:
        span = max(5, len(rows) // 12) | 1  # odd: the step itself and as many on both sides
        series = [
            Series("each step", steps, rewards, "faint", 0),
            Series(f"training, mean over {span} steps", steps, smoothed(rewards, span), "line", 0),
        ]
    else:
        series = [Series("training", steps, rewards, "line", 0)]
    names = dict.fromkeys(str(row.get("name")) for row in evaluations)
    for position, name in enumerate(names):
        points = [
            (value_of(row, "step"), evaluation_reward(row["metrics"]))
            for row in evaluations
            if str(row.get("name")) == name
        ]
        series.append(
            Series(f"evaluation '{name}'", [x for x, _ in points], [y for _, y in points], "dots", 1 + position % 5)
        )
    return series


def _reward_range(series: Iterable[Series]) -> tuple[float | None, float | None]:
    """Rewards between 0 and 1 are shown on that scale."""
    values = [y for one in series for y in one.ys if math.isfinite(y)]
    return (0.0, 1.0) if values and min(values) >= 0 and max(values) <= 1 else (None, None)


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _charts(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Title, SVG and legend of each chart that has something to show."""
    rows = record.rows
    steps = [value_of(row, "step") for row in rows]

    def of(name: str, key: str, mark: Any = "line", colour: int | None = None) -> Series:
        return Series(name, steps, [value_of(row, key) for row in rows], mark, colour)

    bare = "thin" if len(rows) >= MANY else "line"
    rewards = reward_series(rows, record.evaluations)
    both = [
        chart("Mean reward over the steps", rewards, y_range=_reward_range(rewards), size=size)
        for size in (WIDE, MEDIUM)
    ]
    yield (
        "Mean reward",
        f'<div class="roomy">{both[0]}</div><div class="tight">{both[1]}</div>' if both[0] else "",
        legend(rewards),
    )
    tags = _tags(rows)
    if tags:
        by_tag = [
            one
            for index, tag in enumerate(tags[:6])
            for one in with_trend(of(tag, f"env/{tag}/reward/total", colour=index))
        ]
        yield "Reward by kind", chart("Reward by kind", by_tag, y_range=_reward_range(by_tag)), legend(by_tag)
    if not any(math.isfinite(value_of(row, REWARD)) for row in rows):
        if any("dpo_loss" in row for row in rows):
            yield "DPO loss of a pair", chart("DPO loss", with_trend(of("loss", "dpo_loss", colour=0))), ""
            accuracy = with_trend(of("accuracy", "accuracy", colour=1))
            yield "Pairs in which the chosen answer leads", chart("Accuracy", accuracy, y_range=(0.0, 1.0)), ""
            implicit = [of(each, f"{each}_reward", colour=index) for index, each in enumerate(("chosen", "rejected"))]
            yield "Implicit rewards", chart("Implicit rewards", implicit), legend(implicit)
        elif any("train/mean_nll" in row for row in rows):
            nll = [*with_trend(of("training", "train/mean_nll", colour=0)), *_evaluated(record.evaluations, "nll")]
            yield "Mean NLL of a token", chart("Mean NLL", nll), legend(nll)
        yield "Loss", chart("Loss", with_trend(of("loss", "optim/loss", colour=0))), ""
    if any(value_of(row, "staleness/max") > 0 for row in rows):
        stale = [
            of("in flight", "staleness/in_flight_mean", "area", 0),
            of("in queue", "staleness/in_queue_mean", "area", 2),
            of("worst group", "staleness/max", bare, 1),
        ]
        yield "Staleness, optimizer steps", chart("Staleness", stale), legend(stale)
    busy = [*with_trend(of("sampler", "busy/sampler", colour=0)), *with_trend(of("trainer", "busy/trainer", colour=1))]
    yield "Busy share", chart("Busy share", busy, y_range=(0.0, 1.0), label=_percent), legend(busy)
    phases = ("wait_for_groups", "assemble", "forward_backward", "optim_step", "snapshot")
    times = [of(phase.replace("_", " "), f"time/{phase}", "area", index) for index, phase in enumerate(phases)]
    times.append(of("whole step", "time/total", bare, 5))
    yield "Time per step", chart("Time per step", times, y_range=(0.0, None), label=_seconds), legend(times)
    if any(value_of(row, "tokens/per_second") > 0 for row in rows):
        rate = of("tokens/s", "tokens/per_second", colour=0)
        yield "Tokens per second", chart("Tokens per second", with_trend(rate), y_range=(0.0, None)), ""
    else:  # nothing is sampled
        trained = [_ratio(row, "tokens/trained", "time/total") for row in rows]
        rate = Series("tokens/s", steps, trained, "line", 0)
        yield "Tokens trained per second", chart("Tokens per second", with_trend(rate), y_range=(0.0, None)), ""
    groups = [
        *with_trend(of("filtered", "groups/filtered", colour=1)),
        *with_trend(of("failed", "groups/failed", colour=3)),
    ]
    if any(value_of(row, key) > 0 for row in rows for key in ("groups/filtered", "groups/failed")):
        yield "Groups not trained", chart("Groups filtered and failed", groups, y_range=(0.0, None)), legend(groups)
    for title, key in (
        ("Gradient norm", "optim/grad_norm"),
        ("KL, sampler to trainer", "optim/kl_sample_train_v1"),
        ("Entropy", "optim/entropy"),
        ("Learning rate", "optim/lr"),
        ("Tokens per answer", "env/all/ac_tokens_per_turn"),
    ):
        yield title, chart(title, with_trend(of(title, key, colour=0))), ""


def _evaluated(evaluations: Sequence[Row], metric: str) -> list[Series]:
    """A metric of each evaluation that has it, by the step it was taken after."""
    names = dict.fromkeys(str(row.get("name")) for row in evaluations if metric in row["metrics"])
    found = []
    for position, name in enumerate(names):
        rows = [row for row in evaluations if str(row.get("name")) == name and metric in row["metrics"]]
        xs, ys = [value_of(row, "step") for row in rows], [value_of(row["metrics"], metric) for row in rows]
        found.append(Series(f"evaluation '{name}'", xs, ys, "dots", 1 + position % 5))
    return found


def _ratio(row: Row, above: str, below: str) -> float:
    divisor = value_of(row, below)
    return value_of(row, above) / divisor if divisor > 0 else math.nan


def _tags(rows: Sequence[Row]) -> list[str]:
    found = {
        key[len("env/") : -len("/reward/total")]
        for row in rows
        for key in row
        if key.startswith("env/") and key.endswith("/reward/total")
    }
    differing = [
        tag for tag in found - {"all"} if any(row.get(f"env/{tag}/reward/total") != row.get(REWARD) for row in rows)
    ]  # a tag that every problem has says nothing of its own
    return sorted(differing)


# ---- the page


def report_html(record: RunRecord) -> str:
    """The page."""
    sections = []
    charts = [(title, svg, keys) for title, svg, keys in _charts(record) if svg]
    if charts:
        figures = "".join(
            f"<figure{' class=wide' if index == 0 else ''}><figcaption>{escape(title)}</figcaption>{svg}{keys}</figure>"
            for index, (title, svg, keys) in enumerate(charts)
        )
        sections.append(f'<section class="charts">{figures}</section>')
    else:
        sections.append("<section><p>No step has been taken yet.</p></section>")
    if record.first_samples:
        sections.append(samples_section(record.first_samples, record.last_samples))
    if record.evaluations:
        sections.append(f"<section><h2>Evaluations</h2>{_evaluation_table(record.evaluations)}</section>")
    if record.rows:
        last = record.rows[-1]
        cells = [[key, number(value)] for key, value in sorted(last.items()) if key != "step"]
        sections.append(
            f"<section><h2>Last step, {number(last['step'])}</h2>{table(['metric', 'value'], cells, columns=True)}</section>"
        )
    if record.config is not None:
        text = json.dumps(record.config, indent=2, ensure_ascii=False)
        sections.append(
            f"<section><details><summary>Configuration</summary><pre>{escape(text)}</pre></details></section>"
        )
    return page(record.name, list(_facts(record)), sections)


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """The run in a few figures: what, how much."""
    rows = record.rows
    yield "steps", f"{len(rows)}"
    rewards = [reward for reward in (value_of(row, REWARD) for row in rows) if math.isfinite(reward)]
    if rewards:
        few = max(1, min(3, len(rewards) // 2))
        yield "mean reward, first to last steps", f"{sum(rewards[:few]) / few:.2f} → {sum(rewards[-few:]) / few:.2f}"
    scores = [(score, row) for row in record.evaluations if math.isfinite(score := evaluation_reward(row["metrics"]))]
    if scores:
        score, row = scores[-1]
        yield f"evaluation '{row.get('name')}' after step {number(row['step'])}", number(score)
    tokens = sum(count for row in rows if math.isfinite(count := value_of(row, "tokens/sampled")))
    if tokens:
        yield "tokens sampled", short(tokens)
    stalest = max(
        (value_of(row, "staleness/max") for row in rows if math.isfinite(value_of(row, "staleness/max"))), default=0.0
    )
    if stalest > 0:
        yield "worst staleness", number(stalest)
    if rows and math.isfinite(elapsed := value_of(rows[-1], "time/elapsed")):
        yield "time", clock(elapsed)


def _evaluation_table(evaluations: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in evaluations for key in row["metrics"]))[:8]
    cells = [
        [
            number(row["step"]),
            str(row.get("name")),
            *(number(row["metrics"][key]) if key in row["metrics"] else "" for key in keys),
        ]
        for row in evaluations[-40:]
    ]
    return table(["after step", "evaluation", *keys], cells)
