"""Scoring: log-probabilities of given tokens under another policy than the one that learns, such as a reference or a teacher.

Dimension suffixes: `T` positions of one datum or sequence, `G` members of a group, `N` sampled tokens of a group, members in order and their turns in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import anyio
import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, Logprobs, ModelInput
from engine.training.assembly import assemble
from engine.training.kl import full_sequence
from engine.training.trajectories import TrajectoryGroup

CONCURRENCY = 64
"""Sequences being scored at once, where nothing else is asked for."""


class Scorer(Protocol):
    """Whoever scores tokens: a `ReferencePolicy`, a teacher on another backend, anything with this method."""

    async def compute_logprobs(self, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN."""
        ...


@attrs.frozen(eq=False)
class ScorersByTag:
    """Several scorers, each for the groups that carry its tag: one teacher for mathematics, another for code."""

    scorers: Mapping[str, Scorer] = attrs.field()
    default: Scorer | None = None
    """For groups that carry none of the tags; None: such a group is an error."""

    @scorers.validator
    def _(self, _: object, value: Mapping[str, Scorer]) -> None:
        if not value:
            raise ValueError("scorers by tag need at least one tag")

    def choose(self, tags: Sequence[str]) -> Scorer:
        """The scorer of the first of a group's tags that has one. Raises ValueError naming both sides where none has."""
        for tag in tags:
            if tag in self.scorers:
                return self.scorers[tag]
        if self.default is None:
            raise ValueError(
                f"a group with the tags {', '.join(tags) or '(none)'} has no scorer: there are scorers for {', '.join(self.scorers)}"
            )
        return self.default


INITIAL: Literal["initial"] = "initial"
NEWEST: Literal["newest"] = "newest"
ScoredBy = Scorer | ScorersByTag | Literal["initial", "newest"]
"""Who scores a run's groups: a policy from outside, or one of the run's own, `initial` (its reference policy: the weights before any training) or `newest`
(the version that was newest when the group was played)."""


@attrs.frozen(eq=False)
class ScoreSource:
    """Scores that every group gets: their name, and who gives them."""

    name: str
    scorer: ScoredBy
    """`newest` is, in an evaluation, the policy that is evaluated; `initial` is a run's own and has no meaning there."""
    privileged: bool = False
    """Whether it reads the turns' teacher prompts."""


@attrs.frozen(eq=False)
class ToScore:
    """A sequence to be scored, and which of its tokens were sampled."""

    sequence: ModelInput
    sampled: NDArray[np.intp]
    """Their positions in the sequence."""

    def pick(self, logprobs: Logprobs) -> Logprobs:
        """The logprobs of the sampled tokens out of those of all. Raises ValueError where they do not fit or are not finite."""
        if np.shape(logprobs) != (self.sequence.length,):
            raise ValueError(
                f"the scorer gave logprobs of shape {np.shape(logprobs)} for a sequence of {self.sequence.length} tokens"
            )
        picked = np.asarray(logprobs, np.float32)[self.sampled]
        if not np.isfinite(picked).all():
            at = self.sampled[int(np.flatnonzero(~np.isfinite(picked))[0])]
            raise ValueError(
                f"the scorer's logprob of the sampled token at position {at} is {logprobs[at]}; it must be finite"
            )
        return picked


def sequences_to_score(group: TrajectoryGroup, *, privileged: bool) -> list[ToScore]:
    """What has to be scored of a group: its sampled tokens in order, in as few sequences as its datums.

    `privileged`: each turn behind its `teacher_prompt`, where it has one; then every turn is a sequence of its own.
    """
    turns = [turn for trajectory in group.trajectories for turn in trajectory.turns]
    if privileged and any(turn.teacher_prompt is not None for turn in turns):
        sequences = []
        for turn in turns:
            if len(turn.completion.tokens):
                prompt = turn.teacher_prompt or turn.prompt
                positions = prompt.length + np.arange(len(turn.completion.tokens))
                sequences.append(ToScore(prompt.append(turn.completion.tokens), positions))
        return sequences
    data = assemble(group, np.zeros(len(group.trajectories)), without_tokens="skip")
    return [ToScore(full_sequence(datum), np.flatnonzero(datum.loss_inputs["mask"]) + 1) for datum in data]


async def score_targets(scorer: Scorer, data: Sequence[Datum], *, concurrency: int = CONCURRENCY) -> list[Logprobs]:
    """Log-probabilities of the datums' targets, one array (T,) each; at most `concurrency` sequences at a time.

    Raises ValueError, naming the datum, where a scorer gives an array of another length.
    """
    limiter = anyio.Semaphore(concurrency)
    scores: list[Logprobs | None] = [None] * len(data)

    async def one(index: int) -> None:
        try:
            scores[index] = _of_targets(index, data[index], await scorer.compute_logprobs(full_sequence(data[index])))
        finally:
            limiter.release()

    async with anyio.create_task_group() as tasks:
        for index in range(len(data)):
            await limiter.acquire()  # here, not in the task: sequences are asked for in their order
            tasks.start_soon(one, index)
    return [score_T for score_T in scores if score_T is not None]


def _of_targets(index: int, datum: Datum, logprobs: Logprobs) -> Logprobs:
    wanted = datum.model_input.length + 1
    if np.shape(logprobs) != (wanted,):
        raise ValueError(
            f"datum {index}: the scorer gave logprobs of shape {np.shape(logprobs)} for a sequence of {wanted} tokens"
        )
    return logprobs[1:]


async def with_reference_logprobs(
    data: Sequence[Datum], reference: Scorer, *, concurrency: int = CONCURRENCY
) -> list[Datum]:
    """The datums with `reference_logprobs` of their targets, float32, as the losses `dpo` and `kl_*` read them.

    Made to be a supervised run's `prepare`. At most `concurrency` sequences are scored at a time. Where a target has no weight its logprob is 0: nothing reads it, and it may be anything.

    Raises ValueError, naming the datum and the position, where a weighted target's logprob is not finite.
    """
    scored = []
    scores = await score_targets(reference, data, concurrency=concurrency)
    for index, (datum, score_T) in enumerate(zip(data, scores, strict=True)):
        counts_T = _counting(datum)
        if not np.isfinite(score_T[counts_T]).all():
            at = int(np.flatnonzero(counts_T & ~np.isfinite(score_T))[0])
            raise ValueError(f"datum {index}: the reference logprob of the target at position {at} is {score_T[at]}")
        reference_T = np.where(counts_T, score_T, 0.0).astype(np.float32)
        scored.append(attrs.evolve(datum, loss_inputs={**datum.loss_inputs, "reference_logprobs": reference_T}))
    return scored


def _counting(datum: Datum) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Positions whose target a loss looks at, shape (T,)."""
    for name in ("weights", "mask"):
        if name in datum.loss_inputs:
            counts_T: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.asarray(datum.loss_inputs[name]) != 0
            return counts_T
    return np.ones(datum.model_input.length, bool)
