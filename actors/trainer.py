"""The trainer: takes a step's minibatches as they come, submits them, steps the optimizer, publishes, reports.

    consumes: minibatches of a feed       produces: versions, step reports, checkpoints, due evaluations
    waits for: the feed, the backend      unblocked by: finished groups or batches, results

        submit   passes of each minibatch   optim_step   snapshot (where somebody will sample from it)
        finish   ── all results ── boundary: publish, settle, cut a checkpoint ── report

A boundary has no pause in it: the version served, the gate, the feed and a checkpoint's cut belong to the same instant. Where no sampling depends on the step
(supervised training), up to `ahead` further steps are submitted before a step's results are awaited, never across a checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import anyio
import attrs
from anyio.abc import TaskGroup

from actors.evaluator import DueEvaluations, EvaluationPlan
from actors.learning import Feed, LearningSettings, StopRequest
from actors.objective import StepPasses
from actors.reports import CheckpointReport, Report
from actors.sampler import Sampler
from actors.step import StepClock, SubmittedStep
from actors.watched import Watched
from engine.backends.ports import Snapshot, TrainingBackend
from engine.backends.values import Datum
from engine.runtime.channels import Sender
from engine.runtime.instrumentation import Tracer
from engine.runtime.requests import Asker

Ending = Literal["complete", "stopped", "exhausted"]
"""All steps were taken; it was asked to stop; nothing was left to train on."""


class Trainer:
    """Runs steps until there are enough, nothing is left, or it is asked to stop."""

    def __init__(
        self,
        backend: TrainingBackend,
        feed: Feed,
        sampler: Sampler,
        settings: LearningSettings,
        *,
        first_step: int,
        steps: int,
        publish_every_step: bool,
        plan: EvaluationPlan,
        checkpoint_every: int | None,
        cut: Callable[[int, float, bool], CheckpointReport] | None,
        stop: StopRequest,
        tracer: Tracer,
        ahead: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        """`cut(version, elapsed, last)` freezes a checkpoint at a boundary, without waiting; None: no checkpoints. `elapsed`: seconds of the run before a resume."""
        self.ending: Ending = "complete"
        self.version = first_step
        self._backend = backend
        self._feed = feed
        self._sampler = sampler
        self._settings = settings
        self._steps = steps
        self._publish_every_step = publish_every_step
        self._plan = plan
        self._checkpoint_every = checkpoint_every
        self._cut = cut
        self._stop = stop
        self._tracer = tracer
        self._ahead = ahead
        self._elapsed_before = elapsed
        self._saved_version: int | None = first_step
        """What the newest checkpoint holds; None: nothing that stays."""
        self._snapshots: dict[int, Watched[Snapshot]] = {}
        """Submitted and not yet published, by step."""

    async def run(self, reports: Sender[Report], evaluator: Asker[DueEvaluations, None]) -> None:
        """Trains. Ends with an evaluation of the last version and a checkpoint of it."""
        self._clock = StepClock(self._sampler, self._tracer, self._elapsed_before)
        for due in self._plan.at_start(self.version):
            await self._evaluate(due, evaluator)
        try:
            async with anyio.create_task_group() as watchers:
                await self._train(watchers, reports, evaluator)
        finally:
            for unpublished in self._snapshots.values():
                if unpublished.delivered is not None:
                    self._sampler.backend.release(unpublished.delivered)
        last = await self._due_at_end()
        if self._cut is not None and self._saved_version != self.version:
            await reports.send(self._cut(self.version, self._clock.elapsed, True))
        await self._evaluate(last, evaluator)

    async def _train(
        self, watchers: TaskGroup, reports: Sender[Report], evaluator: Asker[DueEvaluations, None]
    ) -> None:
        under_way: deque[SubmittedStep] = deque()
        next_step = self.version
        while True:
            while len(under_way) <= self._ahead and self._may_submit(next_step, under_way):
                submitted = await self._submit(next_step, watchers)
                if submitted is None:
                    self.ending = "exhausted"
                    break
                under_way.append(submitted)
                next_step += 1
            if not under_way:
                return
            await self._finish(under_way.popleft(), reports, evaluator)

    def _may_submit(self, step: int, under_way: deque[SubmittedStep]) -> bool:
        if self._stop.requested and step < self._steps and self.ending == "complete":
            self.ending = "stopped"
        if self.ending != "complete" or step >= self._steps:
            return False
        # A checkpoint between this step and the one before must find nothing submitted behind it.
        return not under_way or not self._checkpoint_due(step)

    def _checkpoint_due(self, version: int) -> bool:
        return self._cut is not None and self._checkpoint_every is not None and version % self._checkpoint_every == 0

    async def _submit(self, step: int, watchers: TaskGroup) -> SubmittedStep | None:
        waited = self._feed.waited
        data: list[Datum] = []
        passes = StepPasses(self._backend, self._settings.objective, watchers)
        for part in range(self._feed.minibatches):
            minibatch = await self._feed.next_minibatch(part)
            if not minibatch:
                break
            data.extend(minibatch)
            await passes.add(minibatch)
        if not data:
            return None
        await passes.complete()
        adam = self._settings.adam(step)
        optim = Watched("optim_step", self._backend.optim_step(adam), watchers)
        wanted = self._publish_every_step or self._plan.any_due(step + 1)
        snapshot = Watched("snapshot", self._backend.snapshot(), watchers) if wanted else None
        if snapshot is not None:
            self._snapshots[step] = snapshot
        return SubmittedStep(step, data, passes, optim, snapshot, adam, self._feed.waited - waited)

    async def _finish(
        self, submitted: SubmittedStep, reports: Sender[Report], evaluator: Asker[DueEvaluations, None]
    ) -> None:
        results, found = await submitted.passes.results()
        optim_metrics = await submitted.optim.result()
        snapshot = await submitted.snapshot.result() if submitted.snapshot is not None else None
        # --- boundary: no pause from here ...
        self.version = submitted.step + 1
        if snapshot is not None:
            self._sampler.publish(snapshot)
            del self._snapshots[submitted.step]
        settled = self._feed.settle()
        own = {
            "progress/done_frac": self.version / self._steps,
            "optim/lr": submitted.adam.learning_rate,
            **{f"optim/{name}": value for name, value in optim_metrics.items()},
            **found,
            **self._clock.boundary(submitted),
        }
        due = self._plan.at(self.version)
        checkpoint = None
        if self._cut is not None and self._checkpoint_due(self.version):
            last = self.version >= self._steps or self._stop.requested
            checkpoint = self._cut(self.version, self._clock.elapsed, last)
            self._saved_version = None if checkpoint.expires else self.version
        # --- ... to here
        report = await settled.report(submitted.data, results)
        await reports.send(attrs.evolve(report, row={"step": submitted.step, **report.row, **own}))
        if checkpoint is not None:
            await reports.send(checkpoint)
        await self._evaluate(due, evaluator)

    async def _due_at_end(self) -> DueEvaluations:
        """The last version's evaluations. A stopped run leaves them to its continuation."""
        if self.ending == "stopped" or not self._plan.missing(self.version):
            return DueEvaluations(self.version, ())
        if self._sampler.newest != self.version:
            self._sampler.publish(await self._backend.snapshot().result())
        return self._plan.at_end(self.version)

    async def _evaluate(self, due: DueEvaluations, evaluator: Asker[DueEvaluations, None]) -> None:
        if any(evaluation.blocking for evaluation in due.evaluations):
            await evaluator.ask(due)
        elif due.evaluations:
            await evaluator.tell(due)
