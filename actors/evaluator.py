"""The evaluator: runs every due evaluation exactly once, at the version it was due at.

    consumes: requests of the trainer     produces: evaluation reports
    waits for: the sampler                unblocked by: completions

The version stays served until its evaluations are done, however far training has come; the trainer waits only for evaluations that ask for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import anyio
import attrs

from actors.divergence import Divergences
from actors.reference import ReferencePolicy
from actors.reports import EvaluationReport, Report
from actors.sampler import Sampler, ServedPolicy
from actors.scoring import Scorer, ScoreSource, score_targets
from engine.backends.values import Datum
from engine.runtime.channels import Sender
from engine.runtime.instrumentation import Tracer
from engine.runtime.offload import offload
from engine.runtime.requests import Inbox
from engine.runtime.seeds import derive_seed
from engine.training.supervised import bits_per_byte, mean_nll
from engine.training.trajectories import TrajectoryGroup
from envs.contracts import GroupBuilder, GroupDataset, Policy
from envs.rollout import RolloutSettings, play_group


class EvaluatedPolicy(Policy, Scorer, Protocol):
    """What is evaluated: it answers (`sample`) and scores given tokens (`compute_logprobs`)."""


EvaluationFn = Callable[[EvaluatedPolicy], Awaitable[Mapping[str, float]]]


@attrs.frozen
class Evaluation:
    """Something to measure of a policy, every so many steps."""

    name: str
    run: EvaluationFn
    every: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    """Steps between evaluations."""
    at_ends: bool = True
    """Also evaluate the untrained policy, and the last version whatever its number."""
    blocking: bool = False
    """Whether training waits for it."""

    def due(self, version: int) -> bool:
        """Whether its interval ends at a version."""
        return version > 0 and version % self.every == 0


Evaluations = Sequence[Evaluation] | Callable[[ReferencePolicy], Sequence[Evaluation]]
"""What a run evaluates; a function, where an evaluation compares with the policy the run began as, which it is given."""


@attrs.frozen
class DueEvaluations:
    """Evaluations to run at one version, which the sender has pinned for each of them."""

    version: int
    evaluations: Sequence[Evaluation]


class EvaluationPlan:
    """Which evaluations are due, and that each is run exactly once."""

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        sampler: Sampler,
        pending: set[tuple[int, str]],
        done: Collection[tuple[int, str]],
    ) -> None:
        """(version, name) of evaluations that are due and not reported (`pending`, shared with evaluator and checkpoints), and of those reported."""
        self._evaluations = evaluations
        self._sampler = sampler
        self._pending = pending
        self._requested = set(done) | pending

    def any_due(self, version: int) -> bool:
        """Whether somebody will sample from this version for an evaluation."""
        return any(evaluation.due(version) for evaluation in self._evaluations)

    def at_start(self, version: int) -> list[DueEvaluations]:
        """Those pending when a resumed run's checkpoint was cut; in a new run, those of the untrained policy."""
        if not self._pending:
            return [self.at_end(0)] if version == 0 else []
        by_name = {evaluation.name: evaluation for evaluation in self._evaluations}
        self._pending -= {(version, name) for version, name in self._pending if name not in by_name}
        for older, _ in self._pending:
            self._sampler.pin(older)
        return [DueEvaluations(older, (by_name[name],)) for older, name in sorted(self._pending)]

    def at(self, version: int) -> DueEvaluations:
        """Those whose interval ends at this version. It must be served."""
        return self._due(version, [evaluation for evaluation in self._evaluations if evaluation.due(version)])

    def at_end(self, version: int) -> DueEvaluations:
        """Those that want the first and the last version, as far as they have not had it."""
        return self._due(version, self.missing(version))

    def missing(self, version: int) -> list[Evaluation]:
        """Evaluations that want a last version and have not had this one."""
        return [
            evaluation
            for evaluation in self._evaluations
            if evaluation.at_ends and (version, evaluation.name) not in self._requested
        ]

    def _due(self, version: int, evaluations: Sequence[Evaluation]) -> DueEvaluations:
        for evaluation in evaluations:
            self._sampler.pin(version)
            self._pending.add((version, evaluation.name))
            self._requested.add((version, evaluation.name))
        return DueEvaluations(version, tuple(evaluations))


class Evaluator:
    """Runs evaluations one after another, in the order in which they became due."""

    def __init__(self, sampler: Sampler, tracer: Tracer, pending: set[tuple[int, str]]) -> None:
        """`pending`: (version, name) of evaluations that are due and not reported; shared with the trainer's checkpoints."""
        self._sampler = sampler
        self._tracer = tracer
        self._pending = pending

    async def run(self, inbox: Inbox[DueEvaluations, None], reports: Sender[Report]) -> None:
        """Answers requests until the trainer has finished."""
        async for ask in inbox:
            for evaluation in ask.question.evaluations:
                await self._evaluate(ask.question.version, evaluation, reports)
            ask.reply(None)

    async def _evaluate(self, version: int, evaluation: Evaluation, reports: Sender[Report]) -> None:
        began = anyio.current_time()
        try:
            try:
                metrics = await evaluation.run(ServedPolicy(self._sampler, version))
            except Exception as error:
                error.add_note(f"in evaluation '{evaluation.name}' at version {version}")
                raise
            self._tracer.span("evaluator", evaluation.name, began, anyio.current_time(), version=version)
            await reports.send(EvaluationReport(version, evaluation.name, dict(metrics)))
            self._pending.discard((version, evaluation.name))
        finally:
            # Not sooner: a checkpoint that is cut while the report waits to be taken holds this one as pending, and needs its weights.
            self._sampler.unpin(version)


def group_evaluation(
    name: str,
    groups: GroupDataset,
    settings: RolloutSettings | None = None,
    *,
    every: int = 20,
    concurrency: int = 16,
    seed: int = 0,
    blocking: bool = False,
    kl_to: Sequence[ScoreSource] = (),
) -> Evaluation:
    """Plays every group of a dataset, at most `concurrency` at a time, and reports the mean reward and the means of the envs' metrics, by tag too.

    `kl_to`: policies, to each of which the mean KL in nats per sampled token is reported, as `<tag>/<source's name>` (k1 on what the evaluated policy sampled).

    The same seeds are used each time, so that two evaluations differ by the policy alone. A group that fails is not counted as a wrong answer: it fails the
    evaluation, unless `settings.failure` lets it live.
    """
    rollout = settings or RolloutSettings()
    if concurrency < 1:
        raise ValueError(f"evaluation '{name}': concurrency must be at least 1, got {concurrency}")

    async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
        seen: dict[str, list[float]] = {}
        divergences = Divergences(kl_to, policy)
        limiter = anyio.Semaphore(concurrency)
        limited = rollout.within_context(getattr(policy, "max_context", None))

        async def one(index: int) -> None:
            async with limiter:
                build: Callable[[int], GroupBuilder] = groups.__getitem__
                builder = await offload(build, index) if getattr(groups, "blocking", False) else build(index)
                group = await play_group(builder, policy, limited, derive_seed(seed, index))
                await divergences.add(group)
            for tag in dict.fromkeys(("all", *group.tags)):
                for metric, value in _measured(group):
                    seen.setdefault(f"{tag}/{metric}", []).append(value)

        async with anyio.create_task_group() as tasks:
            for index in range(len(groups)):
                tasks.start_soon(one, index)
        means = {metric: sum(sorted(values)) / len(values) for metric, values in sorted(seen.items())}
        return {**means, **divergences.metrics()}

    return Evaluation(name, run, every=every, blocking=blocking)


def _measured(group: TrajectoryGroup) -> Iterator[tuple[str, float]]:
    """Rewards of the episodes, and metrics of episodes and turns."""
    for trajectory in group.trajectories:
        yield "reward/total", trajectory.reward
        yield from trajectory.metrics.items()
        for turn in trajectory.turns:
            yield from turn.metrics.items()


def nll_evaluation(
    name: str,
    data: Sequence[Datum],
    *,
    text_bytes: int | None = None,
    every: int = 20,
    concurrency: int = 64,
    blocking: bool = False,
) -> Evaluation:
    """Scores held-out datums: `nll` in nats per unit of weight, and `bits_per_byte` where `text_bytes`, the size of the weighted text, is given.

    At most `concurrency` sequences are scored at a time. Raises ValueError where there are no datums.
    """
    if not data:
        raise ValueError(f"evaluation '{name}': there is nothing to score")

    async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
        logprobs = await score_targets(policy, data, concurrency=concurrency)
        metrics = {"nll": mean_nll(data, logprobs)}
        if text_bytes is not None:
            metrics["bits_per_byte"] = bits_per_byte(data, logprobs, text_bytes)
        return metrics

    return Evaluation(name, run, every=every, blocking=blocking)
