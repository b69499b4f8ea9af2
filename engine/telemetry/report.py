"""A run at a glance: `report.html`, one file without script or external resource, and `reward.svg`.

Both are made from what lies in the run directory, at any moment of a run and after a crash: missing files and keys, damaged lines and NaN are left out.
Everything that comes from a run is text here, however much it looks like HTML: models write what they like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from engine.telemetry.charts import DARK, LIGHT, STYLE, chart
from engine.telemetry.figures import REWARD, clock, evaluation_reward, number, relative, short, value_of
from engine.telemetry.record import Row, RunRecord, read_run
from engine.telemetry.report_page import page, samples_section, table
from engine.telemetry.run_charts import evaluated, figures, headline

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
    """The run's headline (`run_charts.headline`: mostly the mean reward over the steps, with its moving average and the evaluations) as an SVG file that is light or dark as its viewer is."""
    shown = headline(rows, evaluations)
    width, height = 760, 300
    drawing = chart(f"{shown.title} over the steps", shown.series, y_range=shown.y_range, size=(width, height))
    if not drawing:
        drawing = f'<svg viewBox="0 0 {width} {height}" class="chart"><text x="52" y="120">no step has been taken yet</text></svg>'
    keys = [one for one in shown.series if not one.empty and one.mark != "faint"]
    key_marks = "".join(
        f'<circle class="s{one.colour}" cx="{66 + index * 200}" cy="{height + 46}" r="4.5" style="fill:var(--c)"/>'
        f'<text class="k" x="{77 + index * 200}" y="{height + 50}">{escape(one.name)}</text>'
        for index, one in enumerate(keys[:3])
    )
    head = escape(f"{shown.title}{f', {title}' if title else ''}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 20} {height + 66}" width="{width + 20}" height="{height + 66}">'
        f"<style>svg{{{LIGHT}}}@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}{STYLE}"
        "text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif}.h{font-size:14px;font-weight:600;fill:var(--ink)}"
        ".k{font-size:12px;fill:var(--muted)}</style>"
        f'<rect width="100%" height="100%" fill="var(--card)"/><text class="h" x="16" y="24">{head}</text>'
        f'<svg x="10" y="34" width="{width}" height="{height}">{drawing}</svg>{key_marks}</svg>\n'
    )


# ---- the page


def report_html(record: RunRecord) -> str:
    """The page."""
    sections = []
    charts = [(title, svg, keys) for title, svg, keys in figures(record) if svg]
    if charts:
        drawn = "".join(
            f"<figure{' class=wide' if index == 0 else ''}><figcaption>{escape(title)}</figcaption>{svg}{keys}</figure>"
            for index, (title, svg, keys) in enumerate(charts)
        )
        sections.append(f'<section class="charts">{drawn}</section>')
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
    rewards = [value_of(row, REWARD) for row in rows if not relative(row)]
    yield from _from_to("mean reward, first to last steps", [reward for reward in rewards if math.isfinite(reward)], 3)
    for title, metric in EVALUATED:
        for series in evaluated(record.evaluations, metric):
            where = series.name.removeprefix("evaluation ")
            yield from _from_to(f"{title}, {where}", [value for value in series.ys if math.isfinite(value)], 1)
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


EVALUATED = (("win rate", "win_rate"), ("KL to the teacher", "all/teacher_kl"), ("NLL of a token", "nll"))
"""What of evaluations stands at the top of the page."""


def _from_to(name: str, values: Sequence[float], most: int) -> Iterator[tuple[str, str]]:
    """The mean of the first and of the last few, `most` at the most."""
    if values:
        few = max(1, min(most, len(values) // 2))
        yield name, f"{sum(values[:few]) / few:.2f} → {sum(values[-few:]) / few:.2f}"


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
