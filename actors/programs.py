"""Programs: who works with whom.

    train_rl            Source ──jobs──> Rollouts ──finished groups──> Trainer ──reports──> Logger
                           ^ gate           ^ Sampler <──versions──────┘  └──due──> Evaluator ──reports──> Logger

    train_supervised    Batches ──batches──> Trainer ──reports──> Logger
                                                └──due──> Evaluator ──reports──> Logger

Synchronous, streaming and asynchronous RL are the same program at different settings of its `Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import attrs

from actors.batches import BatchCursor, BatchDataset, BatchFeed, BatchSource, BuiltBatch, Minibatches, StepMetrics
from actors.checkpoint import RunSettings
from actors.evaluator import DueEvaluations, Evaluation, EvaluationPlan, Evaluations, Evaluator
from actors.learning import Feed, LearningSettings, StopRequest
from actors.mirroring import Mirroring
from actors.objective import LossChoice, resolve_objective
from actors.prediction import LengthPredictor, RunningMean
from actors.reference import ReferencePolicy
from actors.reports import Observer, Report
from actors.rl_actors import RLActors
from actors.rl_settings import KLPenalty, RLSettings, resolve_shaping
from actors.run import Run, RunResult, open_run
from actors.schedule import Schedule
from actors.scoring import Scorer
from actors.source import ProblemStream
from actors.trainer import Trainer
from actors.work import RLWork
from engine.backends.ports import Backend
from engine.backends.values import AdamParams, Datum, Loss
from engine.runtime.channels import Channel, Receiver
from engine.runtime.instrumentation import Tracer
from engine.runtime.program import Program
from engine.runtime.requests import Inbox
from engine.training.losses import default_loss
from envs.contracts import GroupDataset

__all__ = ["KLPenalty", "Prepare", "RLSettings", "train_rl", "train_supervised"]

REPORTS = 64
"""Reports under way to the logger; a slow disk holds the trainer up rather than filling memory."""

Prepare = Callable[[Sequence[Datum], Scorer], Awaitable[Sequence[Datum]]]
"""Completes a batch ahead of the trainer, with the help of a scorer: `actors.scoring.with_reference_logprobs`, or a function of your own."""


async def train_rl(
    backend: Backend,
    *,
    groups: GroupDataset,
    steps: int | None = None,
    schedule: Schedule | None = None,
    settings: RLSettings | None = None,
    evaluations: Evaluations = (),
    run: RunSettings | None = None,
    observers: Sequence[Observer] = (),
    stop: StopRequest | None = None,
    predictor: LengthPredictor | None = None,
    tracer: Tracer | None = None,
) -> RunResult:
    """Reinforcement learning on `backend`, from problems in `groups`.

    Args:
        steps: optimizer steps in all, those before a resume included. None: what one walk over the dataset (or `settings.epochs`) gives.
        schedule: synchronous, streaming or asynchronous; see `Schedule`.
        evaluations: each is run exactly once when due, at the version it was due at. A function is given the run's reference policy, its weights before
            any training, also after a resume.
        run: where to keep metrics and checkpoints, and whether to resume. None: nothing is written.
        stop: call it to end after the step under way, with a checkpoint.
        predictor: orders waiting work by predicted length.
        tracer: receives the run's timeline. None: trace.json in the run directory, where there is one.

    Raises:
        ActorsFailed: what failed, by actor. RunDirectoryError: the directory cannot be used as asked. ValueError: settings that do not fit.
    """
    schedule = schedule or Schedule()
    settings = settings or RLSettings()
    steps, epochs = _how_long(steps, settings.epochs, len(groups), schedule.groups_per_step)
    settings = attrs.evolve(
        settings, epochs=epochs, rollout=settings.rollout.within_context(backend.capabilities.max_context)
    )
    stream = ProblemStream(groups, epochs=epochs, shuffle=settings.shuffle, seed=settings.seed)
    fixed = {**attrs.asdict(schedule), "seed": settings.seed, "shuffle": settings.shuffle, "problems": len(groups)}
    losses = [settings.loss or default_loss(schedule.max_staleness), *settings.extra_losses]
    with open_run(run, backend, settings.sampler, observers, tracer) as opened:
        objective = resolve_objective(losses, backend, split=schedule.minibatches > 1, note=opened.note)
        shaping = resolve_shaping(settings, objective.reads)
        work = await opened.restore(RLWork, fixed, note=_resumed_groups)
        async with AsyncExitStack() as held:
            reference, wanted = await _with_reference(opened, held, evaluations, needed=shaping.needs_reference)
            actors = RLActors(
                opened, stream, schedule, settings, shaping, reference, steps, predictor or RunningMean(), work
            )
            learning = LearningSettings(objective, settings.optimizer, settings.learning_rate)
            try:
                ending = await _run(opened, actors.feed, learning, steps, wanted, stop, actors, fixed)
            finally:
                opened.keep_events(actors.journal.drain())
        if actors.giving_back.nothing_to_learn:
            opened.note(
                f"nothing left to learn: the last {actors.ledger.constant_in_a_row} groups had constant rewards"
            )
            ending = "nothing_to_learn"
        return await opened.result(ending, gate=actors.gate.statistics())


async def train_supervised(
    backend: Backend,
    *,
    batches: BatchDataset,
    steps: int | None = None,
    loss: LossChoice | None = None,
    optimizer: AdamParams | None = None,
    learning_rate: Callable[[int], float] | None = None,
    evaluations: Evaluations = (),
    run: RunSettings | None = None,
    observers: Sequence[Observer] = (),
    stop: StopRequest | None = None,
    tracer: Tracer | None = None,
    prefetch: int = 4,
    ahead: int = 1,
    prepare: Prepare | None = None,
    reference: Scorer | None = None,
    minibatches: Minibatches | None = None,
    metrics: StepMetrics | None = None,
) -> RunResult:
    """Supervised learning on `backend`: step i trains on `batches[i modulo its length]`.

    Args:
        steps: optimizer steps in all; None: one walk over the batches.
        loss: by name and parameters, or a function of your own (`engine.training.custom`). None: cross_entropy.
        prefetch: batches built, and prepared, before they are needed.
        prepare: completes each batch while earlier ones are trained: `prepare(batch, reference)`. A resumed run prepares again what was prepared and
            not trained, so the same batch must give the same result.
        reference: what `prepare` scores with. None: the run's reference policy, which is the backend's weights before the run trains anything; it lies in the
            run directory, and a resumed run goes on with that one.
        minibatches: into what parts a step is split, by a budget of tokens say; None: one. It changes what is submitted, not the step.
        metrics: further metrics of a step, from its datums and the policy's logprobs of their targets.
        ahead: further steps submitted before a step's results are awaited. A resumed run repeats and skips no batch, whatever this is.

    The other arguments, and what is raised, as for `train_rl`.
    """
    steps = steps if steps is not None else len(batches)
    if steps < 1 or len(batches) < 1:
        raise ValueError(f"there is nothing to train on: {steps} steps, {len(batches)} batches")
    fixed = {"batches": len(batches)}
    with open_run(run, backend, None, observers, tracer) as opened:
        objective = resolve_objective(
            [loss or Loss("cross_entropy")],
            backend,
            split=minibatches is not None and minibatches.tokens is not None,
            note=opened.note,
        )
        await opened.restore(BatchCursor, fixed)
        async with AsyncExitStack() as held:
            needed = prepare is not None and reference is None
            own, wanted = await _with_reference(opened, held, evaluations, needed=needed)
            scorer = reference if reference is not None else own
            prepared = _scoring_with(prepare, scorer) if prepare is not None and scorer is not None else None
            source = BatchSource(batches, opened.first_step, steps, prepared, minibatches)
            actors = _SupervisedActors(opened, source, prefetch, metrics)
            learning = LearningSettings(objective, optimizer or AdamParams(), learning_rate)
            ending = await _run(opened, actors.feed, learning, steps, wanted, stop, actors, fixed, ahead=ahead)
        return await opened.result(ending)


async def _with_reference(
    run: Run, held: AsyncExitStack, evaluations: Evaluations, *, needed: bool
) -> tuple[ReferencePolicy | None, Sequence[Evaluation]]:
    """The run's reference policy where it is needed, held open, and the evaluations, which may need it."""
    if callable(evaluations):
        reference = await held.enter_async_context(run.reference())
        return reference, evaluations(reference)
    return await held.enter_async_context(run.reference()) if needed else None, evaluations


def _scoring_with(prepare: Prepare, scorer: Scorer) -> Callable[[Sequence[Datum]], Awaitable[Sequence[Datum]]]:
    return lambda data: prepare(data, scorer)


class _SupervisedActors:
    """Source and feed of batches."""

    publish_every_step = False

    def __init__(self, run: Run, source: BatchSource, prefetch: int, metrics: StepMetrics | None) -> None:
        self._batches: Channel[BuiltBatch] = Channel("batches", prefetch)
        self._end = self._batches.receiver()
        self._source = source
        self.feed = BatchFeed(self._end, run.first_step, metrics)

    def declare(self, program: Program) -> None:
        sender = self._batches.sender()
        program.actor("batches", self._source.run, sender, feeds=sender)

    @property
    def trainer_owns(self) -> tuple[Receiver[BuiltBatch]]:
        return (self._end,)

    def freeze(self) -> BatchCursor:
        return BatchCursor(self.feed.position)


async def _run(
    run: Run,
    feed: Feed,
    learning: LearningSettings,
    steps: int,
    evaluations: Sequence[Evaluation],
    stop: StopRequest | None,
    actors: RLActors | _SupervisedActors,
    fixed: Mapping[str, Any],
    *,
    ahead: int = 0,
) -> str:
    """Trainer, evaluator and logger behind a program's own actors; runs it all."""
    trainer = Trainer(
        run.backend,
        feed,
        run.sampler,
        learning,
        first_step=run.first_step,
        steps=steps,
        publish_every_step=actors.publish_every_step,
        plan=EvaluationPlan(evaluations, run.sampler, run.pending_evaluations, run.done_evaluations),
        checkpoint_every=run.settings.checkpoint_every,
        cut=run.cutter(fixed, actors.freeze),
        stop=stop or StopRequest(),
        tracer=run.tracer,
        ahead=ahead,
        elapsed=run.elapsed,
    )
    program = Program("training", tracer=run.tracer)
    reports: Channel[Report] = Channel("reports", REPORTS)
    inbox: Inbox[DueEvaluations, None] = Inbox("evaluator", 2)
    actors.declare(program)
    program.actor("trainer", trainer.run, reports.sender(), inbox.asker(), owns=actors.trainer_owns)
    program.actor("evaluator", Evaluator(run.sampler, run.tracer, run.pending_evaluations).run, inbox, reports.sender())
    if run.directory is not None and run.settings.mirror is not None:
        saved: Channel[int] = Channel("saved checkpoints", 1)
        program.drain("logger", run.logger.run, reports.receiver(), saved.sender())
        mirroring = Mirroring(run.directory.path, run.settings.mirror, run.note, run.reclaimer)
        program.drain("mirror", mirroring.run, saved.receiver())
    else:
        program.drain("logger", run.logger.run, reports.receiver())
    try:
        await program.run()
    finally:
        run.channels = [channel.statistics() for channel in program.channels]
    return trainer.ending


def _how_long(steps: int | None, epochs: int | None, problems: int, groups_per_step: int) -> tuple[int, int | None]:
    """Steps in all, and the epochs that bound them."""
    if steps is None:
        epochs = epochs or 1
        return math.ceil(problems * epochs / groups_per_step), epochs
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return steps, epochs


def _resumed_groups(work: RLWork) -> str:
    return f"{len(work.finished)} finished groups kept, {len(work.under_way.assignments)} to be played again"
