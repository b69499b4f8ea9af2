"""The trainer: takes a step's minibatches as they come, submits them, steps the optimizer, publishes, reports.

    consumes: minibatches of a feed       produces: versions, step reports, checkpoints, due evaluations
    waits for: the feed, the backend      unblocked by: finished groups or batches, results

        submit   forward_backward × minibatches   optim_step   snapshot (where somebody will sample from it)
        finish   ── all results ── boundary: publish, settle, cut a checkpoint ── report

A boundary has no pause in it: the version served, the gate, the feed and a checkpoint's cut belong to the same instant. Where no sampling depends on the step
(supervised training), up to `ahead` further steps are submitted before a step's results are awaited, never across a checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Literal, Protocol, TypeVar

import anyio
import attrs
from anyio.abc import TaskGroup

from actors.evaluator import DueEvaluations, Evaluation
from actors.reports import CheckpointReport, Report, StepReport
from actors.sampler import Sampler
from engine.backends.ports import Pending, Snapshot, TrainingBackend
from engine.backends.values import AdamParams, Datum, ForwardBackwardResult, Loss
from engine.runtime.channels import Sender
from engine.runtime.instrumentation import Tracer
from engine.runtime.requests import Asker

T = TypeVar("T")

Ending = Literal["complete", "stopped", "exhausted"]
"""All steps were taken; it was asked to stop; nothing was left to train on."""


class Feed(Protocol):
    """The trainer's supply. All calls come from the trainer."""

    @property
    def minibatches(self) -> int:
        """Parts in which a step is submitted."""
        ...

    async def next_minibatch(self, part: int) -> list[Datum]:
        """The step's `part`-th minibatch; empty when nothing is left to train on."""
        ...

    def settle(self) -> SettledStep:
        """A step is trained: its work is settled. Part of the boundary, so it must neither wait nor take long."""
        ...

    @property
    def waited(self) -> float:
        """Seconds that `next_minibatch` waited for something to train on, so far."""
        ...


class SettledStep(Protocol):
    """A step behind its boundary. What it says about itself may take its time."""

    async def report(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> StepReport:
        """Metrics, journal and samples of the step. `results` belong to its minibatches, `data` is all they held, in order."""
        ...


@attrs.define
class StopRequest:
    """Asks a run to end after the step under way, with a checkpoint."""

    requested: bool = False

    def __call__(self) -> None:
        self.requested = True


@attrs.frozen
class LearningSettings:
    """How a step learns."""

    loss: Loss
    optimizer: AdamParams = attrs.field(factory=AdamParams)
    learning_rate: Callable[[int], float] | None = None
    """Factor on the optimizer's learning rate by step (from 0); None: 1."""

    def adam(self, step: int) -> AdamParams:
        """The optimizer's parameters of a step."""
        if self.learning_rate is None:
            return self.optimizer
        return attrs.evolve(self.optimizer, learning_rate=self.optimizer.learning_rate * self.learning_rate(step))


class _Watched(Generic[T]):
    """A submitted piece of work, whose time of finishing is noted as it comes, and whose failure fails the trainer at once."""

    def __init__(self, name: str, pending: Pending[T], watchers: TaskGroup) -> None:
        self.name = name
        self.submitted_at = anyio.current_time()
        self.finished_at = self.submitted_at
        self._pending = pending
        self.delivered: T | None = None
        self._done = anyio.Event()
        watchers.start_soon(self._watch)

    async def _watch(self) -> None:
        self.delivered = await self._pending.result()
        self.finished_at = anyio.current_time()
        self._done.set()

    async def result(self) -> T:
        await self._done.wait()
        return self.delivered  # type: ignore[return-value]  # delivered before it was done


@attrs.define
class _SubmittedStep:
    step: int
    began: float
    data: list[Datum]
    passes: list[_Watched[ForwardBackwardResult]]
    optim: _Watched[dict[str, float]]
    snapshot: _Watched[Snapshot] | None
    adam: AdamParams
    waited: float


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
        evaluations: Sequence[Evaluation],
        pending_evaluations: set[tuple[int, str]],
        done_evaluations: Collection[tuple[int, str]] = (),
        checkpoint_every: int | None,
        cut: Callable[[int, float], CheckpointReport] | None,
        stop: StopRequest,
        tracer: Tracer,
        ahead: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        """`cut(version, elapsed)` freezes a checkpoint at a boundary, without waiting; None: no checkpoints. `elapsed`: seconds of the run before a resume."""
        self.ending: Ending = "complete"
        self.version = first_step
        self._backend = backend
        self._feed = feed
        self._sampler = sampler
        self._settings = settings
        self._steps = steps
        self._publish_every_step = publish_every_step
        self._evaluations = evaluations
        self._pending_evaluations = pending_evaluations
        self._requested = set(done_evaluations) | pending_evaluations
        """(version, name) of every evaluation that was ever due, so that none is run twice."""
        self._checkpoint_every = checkpoint_every
        self._cut = cut
        self._stop = stop
        self._tracer = tracer
        self._ahead = ahead
        self._elapsed_before = elapsed
        self._saved_version = first_step
        self._last_boundary = 0.0
        self._busy_until = 0.0
        self._snapshots: dict[int, _Watched[Snapshot]] = {}
        """Submitted and not yet published, by step."""
        self._sampled = sampler.statistics()

    async def run(self, reports: Sender[Report], evaluator: Asker[DueEvaluations, None]) -> None:
        """Trains. Ends with an evaluation of the last version and a checkpoint of it."""
        self._began = self._last_boundary = anyio.current_time()
        self._sampled = self._sampler.statistics()
        await self._evaluate_start(evaluator)
        try:
            async with anyio.create_task_group() as watchers:
                await self._train(watchers, reports, evaluator)
        finally:
            for unpublished in self._snapshots.values():
                if unpublished.delivered is not None:
                    self._sampler.backend.release(unpublished.delivered)
        last = await self._due_at_end()
        if self._cut is not None and self._saved_version != self.version:
            await reports.send(self._cut(self.version, self._elapsed()))
        await self._request(last, evaluator)

    async def _train(
        self, watchers: TaskGroup, reports: Sender[Report], evaluator: Asker[DueEvaluations, None]
    ) -> None:
        under_way: deque[_SubmittedStep] = deque()
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

    def _may_submit(self, step: int, under_way: deque[_SubmittedStep]) -> bool:
        if self._stop.requested and step < self._steps and self.ending == "complete":
            self.ending = "stopped"
        if self.ending != "complete" or step >= self._steps:
            return False
        return not under_way or not self._checkpoint_due(
            step
        )  # `step` steps are behind a checkpoint before step `step`

    def _checkpoint_due(self, version: int) -> bool:
        return self._cut is not None and self._checkpoint_every is not None and version % self._checkpoint_every == 0

    async def _submit(self, step: int, watchers: TaskGroup) -> _SubmittedStep | None:
        began, waited = anyio.current_time(), self._feed.waited
        data: list[Datum] = []
        passes = []
        for part in range(self._feed.minibatches):
            minibatch = await self._feed.next_minibatch(part)
            if not minibatch:
                break
            data.extend(minibatch)
            passes.append(
                _Watched("forward_backward", self._backend.forward_backward(minibatch, self._settings.loss), watchers)
            )
        if not passes:
            return None
        adam = self._settings.adam(step)
        optim = _Watched("optim_step", self._backend.optim_step(adam), watchers)
        wanted = self._publish_every_step or any(evaluation.due(step + 1) for evaluation in self._evaluations)
        snapshot = _Watched("snapshot", self._backend.snapshot(), watchers) if wanted else None
        if snapshot is not None:
            self._snapshots[step] = snapshot
        return _SubmittedStep(step, began, data, passes, optim, snapshot, adam, self._feed.waited - waited)

    async def _finish(
        self, submitted: _SubmittedStep, reports: Sender[Report], evaluator: Asker[DueEvaluations, None]
    ) -> None:
        results = [await watched.result() for watched in submitted.passes]
        optim_metrics = await submitted.optim.result()
        snapshot = await submitted.snapshot.result() if submitted.snapshot is not None else None
        # --- boundary: no pause from here ...
        self.version = submitted.step + 1
        if snapshot is not None:
            self._sampler.publish(snapshot)
            del self._snapshots[submitted.step]
        settled = self._feed.settle()
        row = self._row(submitted, optim_metrics)
        due = self._due([evaluation for evaluation in self._evaluations if evaluation.due(self.version)])
        checkpoint = None
        if self._cut is not None and self._checkpoint_due(self.version):
            checkpoint = self._cut(self.version, self._elapsed())
            self._saved_version = self.version
        # --- ... to here
        report = await settled.report(submitted.data, results)
        await reports.send(attrs.evolve(report, row={"step": submitted.step, **report.row, **row}))
        if checkpoint is not None:
            await reports.send(checkpoint)
        await self._request(due, evaluator)

    # --- evaluations

    async def _evaluate_start(self, evaluator: Asker[DueEvaluations, None]) -> None:
        """Those pending when a resumed run's checkpoint was cut; in a new run, those of the untrained policy."""
        if self._pending_evaluations:
            by_name = {evaluation.name: evaluation for evaluation in self._evaluations}
            for version, name in sorted(self._pending_evaluations):
                if name in by_name:
                    self._sampler.pin(version)
                    await self._request(DueEvaluations(version, (by_name[name],)), evaluator)
                else:
                    self._pending_evaluations.discard((version, name))
        elif self.version == 0:
            first = [
                evaluation
                for evaluation in self._evaluations
                if evaluation.at_ends and (0, evaluation.name) not in self._requested
            ]
            await self._request(self._due(first), evaluator)

    async def _due_at_end(self) -> DueEvaluations:
        """The last version, where it was not evaluated already. A stopped run leaves this to its continuation."""
        missing = [
            evaluation
            for evaluation in self._evaluations
            if evaluation.at_ends and (self.version, evaluation.name) not in self._requested
        ]
        if self.ending == "stopped" or not missing:
            return DueEvaluations(self.version, ())
        if self._sampler.newest != self.version:
            self._sampler.publish(await self._backend.snapshot().result())
        return self._due(missing)

    def _due(self, evaluations: Sequence[Evaluation]) -> DueEvaluations:
        for evaluation in evaluations:
            self._sampler.pin(self.version)
            self._pending_evaluations.add((self.version, evaluation.name))
            self._requested.add((self.version, evaluation.name))
        return DueEvaluations(self.version, tuple(evaluations))

    async def _request(self, due: DueEvaluations, evaluator: Asker[DueEvaluations, None]) -> None:
        if not due.evaluations:
            return
        if any(evaluation.blocking for evaluation in due.evaluations):
            await evaluator.ask(due)
        else:
            await evaluator.tell(due)

    # --- metrics

    def _elapsed(self) -> float:
        return self._elapsed_before + anyio.current_time() - self._began

    def _row(self, submitted: _SubmittedStep, optim_metrics: dict[str, float]) -> dict[str, float]:
        """The trainer's own metrics of a step, as of its boundary."""
        now = anyio.current_time()
        sampled, before = self._sampler.statistics(), self._sampled
        self._sampled = sampled
        duration = now - self._last_boundary
        row: dict[str, float] = {"progress/done_frac": self.version / self._steps}
        row["optim/lr"] = submitted.adam.learning_rate
        row.update({f"optim/{name}": value for name, value in optim_metrics.items()})
        tokens = sampled.tokens - before.tokens
        row["tokens/sampled"] = float(tokens)
        row["tokens/per_second"] = tokens / duration if duration > 0 else 0.0
        row["sampler/retries"] = float(sampled.retries - before.retries)
        row["busy/sampler"] = _share(sampled.busy - before.busy, duration)
        row["busy/trainer"] = _share(self._trace(submitted), duration)
        last_pass = submitted.passes[-1]
        row["time/total"] = duration
        row["time/wait_for_groups"] = submitted.waited
        row["time/forward_backward"] = last_pass.finished_at - submitted.passes[0].submitted_at
        row["time/optim_step"] = submitted.optim.finished_at - last_pass.finished_at
        row["time/snapshot"] = (
            submitted.snapshot.finished_at - submitted.optim.finished_at if submitted.snapshot is not None else 0.0
        )
        row["time/elapsed"] = self._elapsed()
        self._last_boundary = now
        return row

    def _trace(self, submitted: _SubmittedStep) -> float:
        """Writes the step's spans; returns the seconds in which the backend had work of this step, the overlap with earlier work counted once."""
        busy = 0.0
        watched: list[_Watched[ForwardBackwardResult] | _Watched[dict[str, float]] | _Watched[Snapshot]] = [
            *submitted.passes,
            submitted.optim,
        ]
        if submitted.snapshot is not None:
            watched.append(submitted.snapshot)
        for piece in watched:
            start = max(piece.submitted_at, self._busy_until)
            if piece.finished_at > start:
                busy += piece.finished_at - start
                self._tracer.span("trainer", piece.name, start, piece.finished_at, step=submitted.step)
            self._busy_until = max(self._busy_until, piece.finished_at)
        return busy


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0
