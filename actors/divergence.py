"""How far a policy is from others, by what it sampled: the mean over sampled tokens of log π − log π_other.

Dimension suffixes: `N` sampled tokens of a group, members in order and their turns in order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from actors.scoring import Scorer, ScorersByTag, ScoreSource, sequences_to_score
from engine.training.trajectories import TrajectoryGroup
from envs.together import alike


class Divergences:
    """Adds up KLs over groups, by tag."""

    def __init__(self, sources: Sequence[ScoreSource], policy: Scorer) -> None:
        """`policy` is the one that sampled. Raises ValueError for a source that only a run has."""
        if any(source.scorer == "initial" for source in sources):
            raise ValueError("an evaluation has no initial policy: give the reference policy itself")
        self._sources = sources
        self._policy = policy
        self._parts: dict[tuple[str, str], list[tuple[float, int]]] = {}

    async def add(self, group: TrajectoryGroup) -> None:
        """Scores a played group. Raises ValueError where a scorer's logprobs do not fit or are not finite."""
        for source in self._sources:
            scorer = self._scorer(source, group)
            sequences = sequences_to_score(group, privileged=source.privileged)
            scores = await alike([functools.partial(scorer.compute_logprobs, each.sequence) for each in sequences])
            other_N = np.concatenate([each.pick(score) for each, score in zip(sequences, scores, strict=True)])
            completions = [turn.completion for trajectory in group.trajectories for turn in trajectory.turns]
            own_N = np.concatenate([completion.logprobs for completion in completions])
            part = (float(np.sum(own_N - other_N, dtype=np.float64)), len(own_N))
            for tag in dict.fromkeys(("all", *group.tags)):
                self._parts.setdefault((tag, source.name), []).append(part)

    def _scorer(self, source: ScoreSource, group: TrajectoryGroup) -> Scorer:
        if isinstance(source.scorer, ScorersByTag):
            return source.scorer.choose(group.tags)
        return self._policy if isinstance(source.scorer, str) else source.scorer

    def metrics(self) -> dict[str, float]:
        """`<tag>/<source>`: nats per token."""
        # In the order of their values, so that the order in which groups were played does not show in the last digits.
        sums = {key: [sum(column) for column in zip(*sorted(parts), strict=True)] for key, parts in self._parts.items()}
        return {f"{tag}/{name}": total / tokens for (tag, name), (total, tokens) in sorted(sums.items()) if tokens}
