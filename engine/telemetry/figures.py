"""Figures for people: a run's progress, and numbers in few characters. Shared by the displays and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

REWARD = "env/all/reward/total"
SPARKS = "▁▂▃▄▅▆▇█"
LARGEST = 1e30
"""Numbers from here on are taken for none: no metric means them, and drawing them overflows."""
PLAIN_SPARKS = "_.-:=+*#"


@attrs.define
class Progress:
    """How far a run is, from the rows of its steps."""

    total: int
    """Optimizer steps in all."""
    title: str = ""
    row: Mapping[str, float] = attrs.field(factory=dict)
    """The last step's metrics."""
    done: int = 0
    """Optimizer steps taken, those before a resume included."""
    rewards: list[float] = attrs.field(factory=list)
    """Mean reward of each step shown, NaN where it had none."""
    _durations: list[float] = attrs.field(factory=list)

    def add(self, row: Mapping[str, float]) -> None:
        """The next step."""
        self.row = row
        self.done = int(row.get("step", self.done)) + 1
        self.rewards.append(value_of(row, REWARD))
        duration = value_of(row, "time/total")
        if math.isfinite(duration):
            self._durations = [*self._durations[-19:], duration]

    @property
    def elapsed(self) -> float | None:
        """Seconds since the run began, as of the last step."""
        value = value_of(self.row, "time/elapsed")
        return value if math.isfinite(value) else None

    @property
    def remaining(self) -> float | None:
        """Seconds to the end, were the coming steps like the last twenty."""
        if not self._durations:
            return None
        return max(0, self.total - self.done) * sum(self._durations) / len(self._durations)


def value_of(row: Mapping[str, Any], key: str) -> float:
    """The number under `key`; NaN where there is none, or none that can be drawn."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else math.nan


def relative(row: Mapping[str, Any]) -> bool:
    """Whether the rewards come from comparing a group's answers with each other: their mean is nought, whatever is learnt."""
    return "env/all/comparisons" in row


def distances(row: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """How far the policy is from its teacher and from the policy that a penalty holds on to, nats a token, where the run has them."""
    for name, key in (("teacher kl", "teacher_kl"), ("kl to reference", "kl_policy_base")):
        if key in row:
            yield name, value_of(row, key)


def learning(row: Mapping[str, float]) -> tuple[str, float] | None:
    """What a row without reward says of learning: the preference loss of a pair, the mean NLL of a token, else the loss."""
    for name, key in (("dpo", "dpo_loss"), ("nll", "train/mean_nll"), ("loss", "optim/loss")):
        if key in row:
            return name, value_of(row, key)
    return None


def busy(row: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Sampler and trainer with the shares of the step they were busy; a sampler that nobody asks is left out."""
    for name in ("sampler", "trainer"):
        if f"busy/{name}" in row and (name == "trainer" or REWARD in row):
            yield name, value_of(row, f"busy/{name}")


def evaluation_reward(metrics: Mapping[str, Any]) -> float:
    """The one figure of an evaluation that stands beside the training reward; NaN where it has none."""
    for key in ("all/reward/total", REWARD, "reward", "correct", "accuracy"):
        if key in metrics:
            return value_of(metrics, key)
    return next((value_of(metrics, key) for key in metrics if key.endswith("reward/total")), math.nan)


def evaluation_parts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An evaluation's figures in few words: `reward`, the envs' own metrics, and of its parts by their tags the reward where it differs."""
    whole = metrics.get("all/reward/total")
    if whole is None:
        return [(key, number(value)) for key, value in metrics.items()]
    parts = [("reward", number(whole))]
    for key, value in metrics.items():
        tag, _, name = key.partition("/")
        if tag == "all":
            parts += [(name, number(value))] if name != "reward/total" else []
        elif name == "reward/total" and value != whole:
            parts.append((tag, number(value)))
        elif not name:
            parts.append((key, number(value)))
    return parts


def clock(seconds: float | None) -> str:
    """`0:07`, `12:34`, `1:02:03`; `-:--` for an unknown time."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: float) -> str:
    """A quantity in at most five characters: `987`, `12.3k`, `4.5M`."""
    if not math.isfinite(value):
        return str(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if abs(scaled) < 99.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.1f}"


def number(value: object) -> str:
    """A metric in a few significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 100 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3f}" if 0.1 <= abs(value) < 100 else f"{value:.3g}"


def sparkline(values: Sequence[float], width: int, marks: str = SPARKS) -> str:
    """The last `width` values as a line of marks between their least and greatest; a blank for a value that is no number."""
    shown = values[-width:] if width > 0 else ()
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((value - low) * scale)] if math.isfinite(value) else " " for value in shown)


def printable(text: str) -> str:
    """Without the characters that would move a cursor, ring a bell or change colours."""
    return "".join(character if character.isprintable() else " " for character in text)
