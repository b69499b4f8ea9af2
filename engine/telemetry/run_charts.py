"""The charts of a run, from its metrics and evaluations: each that has something to show, what matters most first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from engine.telemetry.charts import MANY, MEDIUM, WIDE, Series, chart, legend, smoothed, with_trend
from engine.telemetry.figures import REWARD, evaluation_reward, relative, value_of
from engine.telemetry.record import Row, RunRecord

Figure = tuple[str, str, str]
"""Title, SVG (empty where there is nothing to show) and legend."""


@attrs.frozen
class Headline:
    """The one chart that tells how a run went."""

    title: str
    series: Sequence[Series]
    y_range: tuple[float | None, float | None]


def headline(rows: Sequence[Row], evaluations: Sequence[Row]) -> Headline:
    """The mean reward and its evaluations; the win rate where rewards come from comparing a group's answers, whose mean is nought whatever was learnt."""
    if any(relative(row) for row in rows):
        won = evaluated(evaluations, "win_rate", mark="line")
        if won:
            return Headline("Win rate", won, (0.0, 1.0))
    series = reward_series(rows, evaluations)
    return Headline("Mean reward", series, _reward_range(series))


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
    scored = [(row, evaluation_reward(row["metrics"])) for row in evaluations]
    for position, name in enumerate(dict.fromkeys(str(row.get("name")) for row, _ in scored)):
        points = [(value_of(row, "step"), score) for row, score in scored if str(row.get("name")) == name]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        series.append(Series(f"evaluation '{name}'", xs, ys, "dots", 1 + position % 5))
    return series


def evaluated(evaluations: Sequence[Row], metric: str, mark: Any = "dots") -> list[Series]:
    """A metric of each evaluation that has it, by the step it was taken after."""
    names = dict.fromkeys(str(row.get("name")) for row in evaluations if metric in row["metrics"])
    found = []
    for position, name in enumerate(names):
        rows = [row for row in evaluations if str(row.get("name")) == name and metric in row["metrics"]]
        xs, ys = [value_of(row, "step") for row in rows], [value_of(row["metrics"], metric) for row in rows]
        found.append(Series(f"evaluation '{name}'", xs, ys, mark, 1 + position % 5))
    return found


def figures(record: RunRecord) -> Iterator[Figure]:
    """Every chart of a run."""
    yield from _outcome(record)
    yield from _tied_to_others(record)
    yield from _by_tag(record.rows)
    if not any(math.isfinite(value_of(row, REWARD)) for row in record.rows):
        yield from _without_rewards(record)
    yield from _work(record.rows)
    yield from _optimizer(record.rows)


def _outcome(record: RunRecord) -> Iterator[Figure]:
    first = headline(record.rows, record.evaluations)
    wide, tight = (chart(first.title, first.series, y_range=first.y_range, size=size) for size in (WIDE, MEDIUM))
    both = f'<div class="roomy">{wide}</div><div class="tight">{tight}</div>' if wide else ""
    yield first.title, both, legend(first.series)


def _tied_to_others(record: RunRecord) -> Iterator[Figure]:
    """The distance to a teacher, and to the policy that a penalty holds on to."""
    for title, key in (("KL to the teacher, nats a token", "teacher_kl"), ("KL to the reference", "kl_policy_base")):
        series = [
            *with_trend(_of(record.rows, "training", key, colour=0)),
            *evaluated(record.evaluations, f"all/{key}"),
        ]
        yield title, chart(title, series), legend(series)


def _by_tag(rows: Sequence[Row]) -> Iterator[Figure]:
    by_tag = [
        one
        for index, tag in enumerate(_tags(rows)[:6])
        for one in with_trend(_of(rows, tag, f"env/{tag}/reward/total", colour=index))
    ]
    yield "Reward by kind", chart("Reward by kind", by_tag, y_range=_reward_range(by_tag)), legend(by_tag)


def _without_rewards(record: RunRecord) -> Iterator[Figure]:
    """What is learnt from data: preferences, or what was written."""
    rows = record.rows
    if any("dpo_loss" in row for row in rows):
        yield "DPO loss of a pair", chart("DPO loss", with_trend(_of(rows, "loss", "dpo_loss", colour=0))), ""
        accuracy = with_trend(_of(rows, "accuracy", "accuracy", colour=1))
        yield "Pairs in which the chosen answer leads", chart("Accuracy", accuracy, y_range=(0.0, 1.0)), ""
        implicit = [
            _of(rows, each, f"{each}_reward", colour=index) for index, each in enumerate(("chosen", "rejected"))
        ]
        yield "Implicit rewards", chart("Implicit rewards", implicit), legend(implicit)
    elif any("train/mean_nll" in row for row in rows):
        nll = [*with_trend(_of(rows, "training", "train/mean_nll", colour=0)), *evaluated(record.evaluations, "nll")]
        yield "Mean NLL of a token", chart("Mean NLL", nll), legend(nll)
    won = evaluated(record.evaluations, "win_rate", mark="line")
    yield "Win rate", chart("Win rate", won, y_range=(0.0, 1.0)), legend(won)
    yield "Loss", chart("Loss", with_trend(_of(rows, "loss", "optim/loss", colour=0))), ""


def _work(rows: Sequence[Row]) -> Iterator[Figure]:
    """Who worked, who waited, and how much was done."""
    bare = "thin" if len(rows) >= MANY else "line"
    if any(value_of(row, "staleness/max") > 0 for row in rows):
        stale = [
            _of(rows, "in flight", "staleness/in_flight_mean", "area", 0),
            _of(rows, "in queue", "staleness/in_queue_mean", "area", 2),
            _of(rows, "worst group", "staleness/max", bare, 1),
        ]
        yield "Staleness, optimizer steps", chart("Staleness", stale), legend(stale)
    busy = [
        one
        for index, actor in enumerate(("sampler", "trainer"))
        for one in with_trend(_of(rows, actor, f"busy/{actor}", colour=index))
    ]
    yield "Busy share", chart("Busy share", busy, y_range=(0.0, 1.0), label=_percent), legend(busy)
    phases = ("wait_for_groups", "assemble", "forward_backward", "optim_step", "snapshot")
    times = [
        _of(rows, phase.replace("_", " "), f"time/{phase}", "area", index)
        for index, phase in enumerate(phases)
        if any(value_of(row, f"time/{phase}") > 0 for row in rows)
    ]
    times.append(_of(rows, "whole step", "time/total", bare, 5))
    yield "Time per step", chart("Time per step", times, y_range=(0.0, None), label=_seconds), legend(times)
    if any(value_of(row, "tokens/per_second") > 0 for row in rows):
        title, rate = "Tokens per second", _of(rows, "tokens/s", "tokens/per_second", colour=0)
    else:  # nothing is sampled
        trained = [_ratio(row, "tokens/trained", "time/total") for row in rows]
        title = "Tokens trained per second"
        rate = Series("tokens/s", [value_of(row, "step") for row in rows], trained, "line", 0)
    yield title, chart(title, with_trend(rate), y_range=(0.0, None)), ""
    if any(value_of(row, key) > 0 for row in rows for key in ("groups/filtered", "groups/failed")):
        groups = [
            *with_trend(_of(rows, "filtered", "groups/filtered", colour=1)),
            *with_trend(_of(rows, "failed", "groups/failed", colour=3)),
        ]
        yield "Groups not trained", chart("Groups filtered and failed", groups, y_range=(0.0, None)), legend(groups)


def _optimizer(rows: Sequence[Row]) -> Iterator[Figure]:
    for title, key in (
        ("Gradient norm", "optim/grad_norm"),
        ("KL, sampler to trainer", "optim/kl_sample_train_v1"),
        ("Entropy", "optim/entropy"),
        ("Learning rate", "optim/lr"),
        ("Tokens per answer", "env/all/ac_tokens_per_turn"),
    ):
        yield title, chart(title, with_trend(_of(rows, title, key, colour=0))), ""


def _of(rows: Sequence[Row], name: str, key: str, mark: Any = "line", colour: int | None = None) -> Series:
    return Series(name, [value_of(row, "step") for row in rows], [value_of(row, key) for row in rows], mark, colour)


def _reward_range(series: Iterable[Series]) -> tuple[float | None, float | None]:
    """Rewards between 0 and 1 are shown on that scale."""
    values = [y for one in series for y in one.ys if math.isfinite(y)]
    return (0.0, 1.0) if values and min(values) >= 0 and max(values) <= 1 else (None, None)


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _seconds(value: float) -> str:
    return f"{value:g} s"


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
