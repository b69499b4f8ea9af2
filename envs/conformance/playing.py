"""Playing a subject's groups for the checks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs

from engine.backends.values import SamplingParams, Tokens
from engine.conformance import NotConforming
from engine.training.trajectories import TrajectoryGroup
from envs.conformance.garbage import garbage
from envs.conformance.subject import Subject
from envs.conformance.watching import Answering, Watch, watched
from envs.contracts import GroupDataset
from envs.rollout import FailFast, RolloutLimits, RolloutSettings, play_group

SPARE_TURNS = 2
"""Turns beyond `max_turns` that are played to see whether an episode ends."""


@attrs.frozen
class Stage:
    """An opened subject."""

    subject: Subject
    problems: GroupDataset

    def settings(self, **limits: Any) -> RolloutSettings:
        """Failures are raised as they are."""
        longest = {"max_turns": self.subject.max_turns + SPARE_TURNS} | limits
        return RolloutSettings(SamplingParams(self.subject.max_tokens), RolloutLimits(**longest), FailFast())

    async def play(
        self,
        problem: int,
        pool: Sequence[Tokens],
        *,
        seed: int = 0,
        watch: Watch | None = None,
        policy: Answering | None = None,
        **limits: Any,
    ) -> tuple[TrajectoryGroup, Watch]:
        """Plays a group with answers from the pool. Raises NotConforming when it takes longer than the subject allows."""
        watch = watch or Watch()
        policy = policy or Answering(pool, watch)
        group = watched(self.problems[problem], watch)
        with anyio.move_on_after(self.subject.seconds):
            return await play_group(group, policy, self.settings(**limits), seed), watch
        raise NotConforming(f"problem {problem} was not played to its end within {self.subject.seconds:g} s")


@asynccontextmanager
async def opened(subject: Subject) -> AsyncIterator[Stage]:
    """The subject's problems, open."""
    async with subject.open() as problems:
        yield Stage(subject, problems)


def pools(subject: Subject) -> dict[str, list[Tokens]]:
    """What is answered, by name: each piece of garbage in all turns, the useful answers, and any of all of them."""
    rubbish, useful = garbage(subject), subject.useful()
    found = {name: [tokens] for name, tokens in rubbish.items()}
    if useful:
        found["useful answers"] = useful
    found["any of them"] = [*rubbish.values(), *useful]
    return found


def mixed(subject: Subject) -> list[Tokens]:
    """Useful answers and garbage, about half of each."""
    rubbish, useful = list(garbage(subject).values()), subject.useful()
    return rubbish + useful * (len(rubbish) // len(useful)) if useful else rubbish
