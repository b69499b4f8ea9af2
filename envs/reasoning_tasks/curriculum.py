"""A curriculum: the level of difficulty of each task, moved by measured success.

When the mean score of the last `window` groups at a task's level reaches `raise_at`, its next problems are a level harder; when it falls to `lower_at`, a level easier. Problems
that were handed out keep their level: a group that is played again after a crash is the same one.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

_share: Any = [attrs.validators.ge(0.0), attrs.validators.le(1.0)]
_level: Any = attrs.validators.optional(attrs.validators.ge(0))


@attrs.frozen
class CurriculumConfig:
    """How difficulty moves."""

    start: int | None = attrs.field(default=0, validator=_level)
    """The first level; None: no curriculum, the tasks' own default difficulty."""
    highest: int | None = attrs.field(default=None, validator=_level)
    """The last level; None: the task's own."""
    raise_at: float = attrs.field(default=0.8, validator=_share)
    """Mean score from which on a task becomes harder."""
    lower_at: float = attrs.field(default=0.1, validator=_share)
    """Mean score from which down it becomes easier; 0: only when nothing succeeds."""
    window: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Groups at a level over which the mean is taken, and that are played at least before the level moves."""
    moves: tuple[str, ...] = ()
    """Attributes of the tasks that follow the level (num_terms, say); the others stay at their lowest. Empty: all."""
    inclusive: bool = True
    """Problems of lower levels come, too; otherwise only those of the level."""

    def __attrs_post_init__(self) -> None:
        if self.lower_at >= self.raise_at:
            raise ValueError(f"lower_at must be below raise_at: {self.lower_at} is not below {self.raise_at}")


@attrs.define
class _Ladder:
    """One task's way."""

    highest: int
    changes: list[tuple[int, int]]
    """(first problem at it, level), in order."""
    scores: list[float] = attrs.field(factory=list)
    """Mean scores of the groups at the present level, the newest last."""

    @property
    def level(self) -> int:
        return self.changes[-1][1]

    def level_at(self, index: int) -> int:
        return self.changes[bisect.bisect_right([first for first, _ in self.changes], index) - 1][1]


class Curriculum:
    """The levels of several tasks."""

    def __init__(self, config: CurriculumConfig, highest: Mapping[str, int]) -> None:
        """`highest`: the last level of each task."""
        self.config = config
        start = config.start or 0
        self._ladders = {}
        for task, most in highest.items():
            last = most if config.highest is None else min(most, config.highest)
            self._ladders[task] = _Ladder(last, [(0, min(start, last))])
        self._handed = -1

    @property
    def levels(self) -> Mapping[str, int]:
        """The present level of each task."""
        return {task: ladder.level for task, ladder in self._ladders.items()}

    def hand_out(self, task: str, index: int) -> int:
        """The level of a problem, which it keeps."""
        self._handed = max(self._handed, index)
        return self._ladders[task].level_at(index)

    def observe(self, task: str, index: int, score: float) -> None:
        """The mean score of a group that was played. What was handed out at another level does not count."""
        ladder = self._ladders[task]
        if ladder.level_at(index) != ladder.level:
            return
        ladder.scores.append(score)
        window = self.config.window
        del ladder.scores[:-window]
        if len(ladder.scores) < window:
            return
        mean = sum(ladder.scores) / window
        step = 1 if mean >= self.config.raise_at else -1 if mean <= self.config.lower_at else 0
        level = min(max(ladder.level + step, 0), ladder.highest)
        if level != ladder.level:
            ladder.changes.append((self._handed + 1, level))
            ladder.scores.clear()

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "handed": self._handed,
            "tasks": {
                task: {"changes": [list(change) for change in ladder.changes], "scores": list(ladder.scores)}
                for task, ladder in self._ladders.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes a state back. Raises ValueError for one of other tasks."""
        tasks: Mapping[str, Mapping[str, Sequence[Any]]] = state["tasks"]
        if set(tasks) != set(self._ladders):
            raise ValueError(
                f"the checkpoint's curriculum is of the tasks {', '.join(sorted(tasks))}, not of {', '.join(sorted(self._ladders))}"
            )
        self._handed = int(state["handed"])
        for task, kept in tasks.items():
            ladder = self._ladders[task]
            ladder.changes = [(int(first), int(level)) for first, level in kept["changes"]]
            ladder.scores = [float(score) for score in kept["scores"]]
