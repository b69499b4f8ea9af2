"""Scoring ahead of the trainer: other policies' logprobs of what was sampled, asked for as soon as a group is played.

    consumes: played groups               produces: finished groups
    waits for: the scorers                unblocked by: logprobs, a sequence that is done

Sequences are asked for in the order in which their groups were played, so many at a time. A group that a checkpoint finds here is kept with its tokens:
a resumed run asks for the scores again, not for the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs
import numpy as np
from anyio.abc import TaskGroup

from actors.giving_back import GivingBack
from actors.retries import SamplerSettings, ask
from actors.sampler import Sampler
from actors.scoring import NEWEST, Scorer, ScorersByTag, ScoreSource, ToScore, sequences_to_score
from actors.work import FinishedGroup, UnderWay
from engine.backends.values import Logprobs, ModelInput
from engine.runtime.channels import Receiver, Sender
from engine.runtime.instrumentation import Tracer
from engine.runtime.seeds import derive_seed
from envs.rollout import FailFast, FailurePolicy, GroupFailed


class ServedScorer:
    """A served version as a scorer; its user keeps it pinned."""

    def __init__(self, sampler: Sampler, version: int) -> None:
        self._sampler = sampler
        self._version = version

    async def compute_logprobs(self, sequence: ModelInput) -> Logprobs:
        """See `Sampler.compute_logprobs`."""
        return await self._sampler.compute_logprobs(sequence, self._version)


@attrs.define(eq=False)
class _InHand:
    """A group being scored."""

    group: FinishedGroup
    began: float
    scores: dict[str, list[Logprobs | None]]
    unanswered: int
    error: Exception | None = None


class ScoringAhead:
    """Scores groups between their rollout and their training."""

    def __init__(
        self,
        sources: Sequence[ScoreSource],
        reference: Scorer | None,
        sampler: Sampler,
        giving_back: GivingBack,
        *,
        concurrency: int,
        retries: SamplerSettings,
        deadline: float | None,
        failure: FailurePolicy,
        under_way: UnderWay,
        tracer: Tracer,
        kept: Sequence[FinishedGroup] = (),
    ) -> None:
        """`reference`: the run's reference policy, where a source wants it. `kept`: groups of a restored checkpoint that lack scores. `deadline`: of one attempt, in seconds. `failure`: what a group that cannot be scored
        does to the run."""
        self._sources = sources
        self._reference = reference
        self._sampler = sampler
        self._giving_back = giving_back
        self._limiter = anyio.Semaphore(concurrency)
        self._retries = retries
        self._deadline = deadline
        self._failure = failure
        self._under_way = under_way
        self._tracer = tracer
        self._kept = kept
        self.keeps_version = any(source.scorer == NEWEST for source in sources)
        """Whether a played group needs the version that was newest then."""
        for group in kept:
            under_way.played[group.ticket.number] = group
            if self.keeps_version:
                sampler.pin(group.finished_version)  # before the actors start: nobody may publish past it

    async def run(self, played: Receiver[FinishedGroup], finished: Sender[FinishedGroup]) -> None:
        """Scores every group; returns when the rollouts have finished and all groups are scored."""
        async with anyio.create_task_group() as tasks:
            for group in self._kept:
                await self._begin(group, finished, tasks)
            async for group in played:
                await self._begin(group, finished, tasks)

    async def _begin(self, group: FinishedGroup, finished: Sender[FinishedGroup], tasks: TaskGroup) -> None:
        """Asks for all of a group's scores, as the bound allows."""
        wanted: list[tuple[ScoreSource, Scorer, int, ToScore]] = []
        for source in self._sources:
            scorer = self._scorer(source, group)
            sequences = sequences_to_score(group.group, privileged=source.privileged)
            wanted += [(source, scorer, place, sequence) for place, sequence in enumerate(sequences)]
        scores: dict[str, list[Logprobs | None]] = {source.name: [] for source in self._sources}
        for source, *_ in wanted:
            scores[source.name].append(None)
        in_hand = _InHand(group, anyio.current_time(), scores, len(wanted))
        if not wanted:
            self._finish(in_hand, finished)
        for one in wanted:
            await self._limiter.acquire()
            tasks.start_soon(self._score, in_hand, *one, finished)

    def _scorer(self, source: ScoreSource, group: FinishedGroup) -> Scorer:
        match source.scorer:
            case "newest":
                return ServedScorer(self._sampler, group.finished_version)
            case "initial":
                if self._reference is None:
                    raise RuntimeError("the reference policy is to score, and nobody holds it")
                return self._reference
            case ScorersByTag():
                return source.scorer.choose(group.group.tags)
            case scorer:
                return scorer

    async def _score(
        self,
        in_hand: _InHand,
        source: ScoreSource,
        scorer: Scorer,
        place: int,
        wanted: ToScore,
        finished: Sender[FinishedGroup],
    ) -> None:
        try:
            if in_hand.error is None:
                in_hand.scores[source.name][place] = await self._ask(in_hand.group, source, scorer, place, wanted)
        except Exception as error:
            error.add_note(f"while group {in_hand.group.ticket.number} was scored for '{source.name}'")
            if isinstance(self._failure, FailFast):
                raise
            in_hand.error = error
        finally:
            self._limiter.release()
        in_hand.unanswered -= 1
        if not in_hand.unanswered:
            self._finish(in_hand, finished)

    async def _ask(
        self, group: FinishedGroup, source: ScoreSource, scorer: Scorer, place: int, wanted: ToScore
    ) -> Logprobs:
        logprobs = await ask(
            lambda: scorer.compute_logprobs(wanted.sequence),
            self._retries,
            self._deadline,
            derive_seed(group.assignment.seed, place),
            f"scoring for '{source.name}'",
        )
        return wanted.pick(logprobs)

    def _finish(self, in_hand: _InHand, finished: Sender[FinishedGroup]) -> None:
        group, error = in_hand.group, in_hand.error
        number = group.ticket.number
        if self.keeps_version:
            self._sampler.unpin(group.finished_version)
        self._tracer.span("scoring", f"group {number}", in_hand.began, anyio.current_time())
        if error is not None:
            reason = GroupFailed(f"group {number} could not be scored: {type(error).__name__}: {error}")
            reason.__cause__ = error
            self._giving_back.unscored(group.assignment, reason)
            return
        self._giving_back.unscored_in_a_row = 0
        scores = {name: _joined(parts) for name, parts in in_hand.scores.items()}
        scored = attrs.evolve(group, scores=scores)
        self._under_way.played[number] = scored  # its place among those played stays
        finished.send_nowait(scored)


def _joined(parts: Sequence[Logprobs | None]) -> Logprobs:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else np.empty(0, np.float32)
