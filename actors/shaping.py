"""From finished groups to the datums of minibatches: advantages, assembly, and what is done to the datums before the loss sees them.

    groups ──advantages──▶ datums ──KL, correction, one's own, normalisation──▶ cut into minibatches

Where every part of it looks at single groups, a minibatch is made from its own groups alone; where one part looks at the whole step, the step is shaped as
a whole and then cut. Either way the gradient of a step does not depend on the number of minibatches.

Dimension suffixes: `G` members of a group, `N` sampled tokens of a group or of many, `T` positions of one datum.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence

import anyio.lowlevel
import numpy as np
from numpy.typing import NDArray

from actors.work import FinishedGroup
from engine.backends.values import Datum, Logprobs
from engine.runtime.offload import offload
from engine.training.advantages import Advantage, Scope
from engine.training.assembly import TurnFilter, assemble
from engine.training.transforms import MeanSums, ScoredDatums, Scores, Transform, needed_scope, transformed

PORTION = 256
"""Turns of episodes assembled or counted before other tasks get their turn: a big step must not hold up the rollouts."""
PROXIMAL = "proximal"
"""Name of the scores of the proximal policy."""

Forward = Callable[[Sequence[Datum]], Awaitable[Sequence[Logprobs]]]
"""The trainer's present policy: logprobs of the datums' targets, one array (T,) each."""


class Shaper:
    """Makes a step's datums."""

    def __init__(
        self,
        advantage: Advantage,
        transforms: Sequence[Transform],
        *,
        proximal: Forward | None = None,
        train_turn: TurnFilter | None = None,
    ) -> None:
        """`proximal`: gives the scores called "proximal" where they are the trainer's own, from a forward pass; None: they come with the groups."""
        self._advantage = advantage
        self._transforms = transforms
        self._read = {name for transform in transforms for name in transform.reads}
        self._proximal = proximal if PROXIMAL in self._read else None
        self._train_turn = train_turn
        self._sums = MeanSums()

    @property
    def scope(self) -> Scope:
        """How much of a step has to be there before any of its minibatches."""
        return "step" if self._advantage.scope == "step" else needed_scope(self._transforms)

    async def shape(self, groups: Sequence[FinishedGroup], sizes: Sequence[int]) -> list[list[Datum]]:
        """The datums of minibatches of so many groups each, in the groups' order."""
        advantages = self._advantages(groups)
        data: list[Datum] = []
        ends = [0]
        turns = 0
        for finished, advantages_G in zip(groups, advantages, strict=True):
            turns += turns_of(finished)
            if turns > PORTION:
                await anyio.lowlevel.checkpoint()
                turns = 0
            data.extend(assemble(finished.group, advantages_G, train_turn=self._train_turn))
            ends.append(len(data))
        if self._transforms and data:
            data = await self._transformed(groups, data, ends)
        cuts = np.minimum(np.cumsum([0, *sizes]), len(groups))
        return [data[ends[start] : ends[end]] for start, end in itertools.pairwise(cuts)]

    def metrics(self) -> dict[str, float]:
        """What the transforms found in the step's datums so far; forgotten then."""
        sums, self._sums = self._sums, MeanSums()
        return sums.metrics()

    def _advantages(self, groups: Sequence[FinishedGroup]) -> list[NDArray[np.float64]]:
        if not groups:
            return []
        if self._advantage.scope == "step":
            return self._advantage([finished.group for finished in groups])
        advantages = []
        for finished in groups:
            try:
                advantages += self._advantage([finished.group])
            except Exception as error:
                error.add_note(
                    f"the group is of problem {finished.assignment.problem}, ticket {finished.ticket.number}"
                )
                raise
        return advantages

    async def _transformed(
        self, groups: Sequence[FinishedGroup], data: Sequence[Datum], ends: Sequence[int]
    ) -> list[Datum]:
        scores: dict[str, Scores] = {}
        if self._proximal is not None:
            scores[PROXIMAL] = await self._proximal(data)
        for name in self._read - scores.keys():
            kept = [self._trained(finished, name) for finished in groups]
            scores[name] = _placed(data, np.concatenate(kept) if kept else np.empty(0, np.float32))
        tags = [
            finished.group.tags
            for finished, start, end in zip(groups, ends[:-1], ends[1:], strict=True)
            for _ in range(start, end)
        ]
        shaped, metrics = await offload(transformed, ScoredDatums(data, scores, tags), self._transforms)
        self._sums.add(metrics)
        return list(shaped)

    def _trained(self, finished: FinishedGroup, name: str) -> Logprobs:
        """A group's scores, of the tokens that are trained, shape (N,)."""
        scores_N = finished.scores[name]
        if self._train_turn is None:
            return scores_N
        turns = [turn for trajectory in finished.group.trajectories for turn in trajectory.turns]
        lengths = [len(turn.completion.tokens) for turn in turns]
        trained_N: Logprobs = scores_N[np.repeat([self._train_turn(turn) for turn in turns], lengths)]
        return trained_N


def turns_of(finished: FinishedGroup) -> int:
    """Turns of all of a group's episodes."""
    return sum(len(trajectory.turns) for trajectory in finished.group.trajectories)


def _placed(data: Sequence[Datum], scores_N: Logprobs) -> list[Logprobs]:
    """Scores of the trained tokens at their places in the datums, 0 elsewhere."""
    trained = np.concatenate([datum.loss_inputs["mask"] for datum in data]) > 0
    placed = np.zeros(len(trained), np.float32)
    placed[trained] = scores_N
    return np.split(placed, np.cumsum([datum.model_input.length for datum in data])[:-1])
