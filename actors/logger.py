"""The logger: the one writer of the run directory. Stops last and loses nothing.

    consumes: reports                     produces: lines on disk, checkpoints, calls of the observers
    waits for: reports, the disk          unblocked by: every other actor

A checkpoint becomes valid only after the metrics of all its steps are on disk, because it is reported after them and written in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio

from actors.reclaiming import Reclaimer
from actors.reports import CheckpointReport, EvaluationReport, Note, Observer, Report, StepReport
from engine.runtime.channels import Receiver, Sender
from engine.runtime.instrumentation import Tracer
from engine.runtime.offload import offload
from engine.storage.checkpoints import CheckpointStore
from engine.storage.run_directory import EVALUATIONS, EVENTS, METRICS, SAMPLES, RunDirectory
from engine.telemetry.trace import TraceWriter


class Logger:
    """Writes reports; without a run directory it keeps the rows in memory."""

    def __init__(
        self,
        run: RunDirectory | None,
        store: CheckpointStore | None,
        observers: Sequence[Observer] = (),
        tracer: Tracer | None = None,
        pending_evaluations: Collection[tuple[int, str]] = (),
        reclaimer: Reclaimer | None = None,
    ) -> None:
        """`pending_evaluations`: (version, name) of those that are due and not reported, as they change. `reclaimer`: deletes on the server what pruning left."""
        self._run = run
        self._store = store
        self._observers = observers
        self._tracer = tracer
        self._pending_evaluations = pending_evaluations
        self._reclaimer = reclaimer
        self.rows: list[Mapping[str, float]] = []
        """Metrics by step, kept only where there is no run directory to read them from."""
        self.evaluations: list[EvaluationReport] = []

    async def run(self, reports: Receiver[Report], saved: Sender[int] | None = None) -> None:
        """Writes what comes until nobody can send any more. `saved` is told of every checkpoint."""
        async for report in reports:
            match report:
                case StepReport():
                    await self._step(report)
                case EvaluationReport():
                    await self._evaluation(report)
                case CheckpointReport():
                    await self._checkpoint(report)
                    if saved is not None:
                        with suppress(anyio.WouldBlock):  # it has one to see to yet, and will find this one then
                            saved.send_nowait(report.version)
                case Note():
                    self._note(report.text)

    async def _step(self, report: StepReport) -> None:
        if self._run is None:
            self.rows.append(report.row)
        else:
            await offload(self._write_step, self._run, report)
            if isinstance(self._tracer, TraceWriter):
                await offload(self._tracer.flush)
        for observer in self._observers:
            observer.step(report.row)

    @staticmethod
    def _write_step(run: RunDirectory, report: StepReport) -> None:
        run.append(EVENTS, report.events)
        run.append(SAMPLES, report.samples)
        run.append(METRICS, [report.row])

    async def _evaluation(self, report: EvaluationReport) -> None:
        if self._run is None:
            self.evaluations.append(report)
        else:
            row: dict[str, Any] = {"step": report.version, "name": report.name, "metrics": report.metrics}
            await offload(self._run.append, EVALUATIONS, [row])
            if self._store is not None and self._store.keeping.best is not None:
                waited_for = set(self._pending_evaluations) - {(report.version, report.name)}
                await offload(self._store.prune, waited_for)
                await self._reclaim()
        for observer in self._observers:
            observer.evaluation(report.version, report.name, report.metrics)

    async def _checkpoint(self, report: CheckpointReport) -> None:
        for pending in report.submitted:
            await pending.result()
        await offload(self._commit, report, set(self._pending_evaluations))
        self._note(f"checkpoint {report.version} saved")
        await self._reclaim()

    async def _reclaim(self) -> None:
        if self._reclaimer is not None:
            await self._reclaimer.reclaim(await self._reclaimer.due())

    def _commit(self, report: CheckpointReport, pending: Collection[tuple[int, str]]) -> None:
        if self._run is None or self._store is None:
            raise RuntimeError("a checkpoint was cut in a run without a run directory")
        report.write(report.directory)
        self._run.make_durable((METRICS, EVALUATIONS, EVENTS, SAMPLES))
        self._store.commit(report.version, report.directory)
        self._store.prune(pending)

    def _note(self, text: str) -> None:
        for observer in self._observers:
            observer.note(text)
