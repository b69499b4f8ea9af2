"""A run's surroundings: directory, checkpoints, sampler, logger; opened before its actors start, closed after the last has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, closing, contextmanager, suppress
from typing import Any, TypeVar

import attrs
import structlog

from actors.checkpoint import CheckpointCutter, RunSettings, restore
from actors.logger import Logger
from actors.reclaiming import Reclaimer
from actors.reference import ReferencePolicy, open_reference
from actors.reports import EvaluationReport, Observer
from actors.sampler import Sampler, SamplerSettings, SamplerStatistics
from engine.backends.ports import Backend, RemoteBackend, Snapshot
from engine.runtime.channels import ChannelStatistics
from engine.runtime.gate import GateStatistics
from engine.runtime.instrumentation import NullTracer, Tracer
from engine.runtime.offload import offload
from engine.storage.checkpoints import CheckpointStore
from engine.storage.discarded import nothing_elsewhere
from engine.storage.run_directory import EVALUATIONS, EVENTS, METRICS, TRACE, RunDirectory
from engine.telemetry.trace import TraceWriter

W = TypeVar("W")


@attrs.frozen
class RunResult:
    """How a run ended, and what it leaves."""

    version: int
    """Optimizer steps behind the weights."""
    ending: str
    """complete, stopped (it was asked to), exhausted (the problems were used up), nothing_to_learn (constant rewards, group after group)."""
    rows: Sequence[Mapping[str, float]]
    """Metrics, a row a step, steps before a resume included."""
    evaluations: Sequence[EvaluationReport]
    sampler: SamplerStatistics
    channels: Sequence[ChannelStatistics]
    gate: GateStatistics | None = None


class Run:
    """What the actors of one run stand on. Made by `open_run`."""

    def __init__(
        self,
        settings: RunSettings,
        backend: Backend,
        sampler: Sampler,
        directory: RunDirectory | None,
        observers: Sequence[Observer],
        tracer: Tracer,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.sampler = sampler
        self.directory = directory
        self.tracer = tracer
        elsewhere = backend.elsewhere if isinstance(backend, RemoteBackend) else nothing_elsewhere
        self.store = CheckpointStore(directory, settings.keeping, elsewhere) if directory is not None else None
        self.reclaimer: Reclaimer | None = None
        """Deletes what this run's deleted checkpoints leave on a server."""
        if directory is not None and isinstance(backend, RemoteBackend):
            self.reclaimer = Reclaimer(directory.path, backend, self.note)
        self.resumed = False
        """It goes on from a checkpoint."""
        self.first_step = 0
        self.elapsed = 0.0
        self.pending_evaluations: set[tuple[int, str]] = set()
        self.done_evaluations: set[tuple[int, str]] = set()
        self._observers = observers
        # With a copy elsewhere, what the copy still names goes only when that is up to date.
        reclaimer = self.reclaimer if settings.mirror is None else None
        self.logger = Logger(directory, self.store, observers, tracer, self.pending_evaluations, reclaimer)
        self.channels: list[ChannelStatistics] = []

    def note(self, text: str) -> None:
        """Tells the observers; where there are none, the log, so that an embedded run does not fall back in silence."""
        for observer in self._observers:
            observer.note(text)
        if not self._observers:
            structlog.get_logger("callsheet").info(text)

    async def restore(
        self, kind: type[W], fixed: Mapping[str, Any], *, note: Callable[[W], str] | None = None
    ) -> W | None:
        """Goes on from the newest usable checkpoint, or starts anew; publishes the version that is served first."""
        restored = None
        if self.directory is not None and self.store is not None and self.settings.resume:
            restored = await restore(self.store, self.backend, kind, fixed, self.note)
        if restored is None and self.backend.version:
            # Trained before, by a supervised phase say: its weights are where this run begins.
            await self.backend.restart().result()
        await self._serve(restored.snapshots.values() if restored is not None else ())
        if restored is not None and self.directory is not None:
            state = restored.state
            self.resumed = True
            self.first_step, self.elapsed = state.version, state.elapsed
            self.pending_evaluations.update(state.pending_evaluations)
            await offload(self._rewind, state.version, state.pending_evaluations)
            self.done_evaluations.update((row["step"], row["name"]) for row in self.directory.read(EVALUATIONS))
            detail = f": {note(restored.work)}" if note is not None else ""
            self.note(f"resumed after step {state.version}{detail}")
            self.directory.append(EVENTS, [{"event": "resumed", "step": state.version}])
        elif self.directory is not None and self.directory.holds_run:
            await offload(self._rewind, -1, ())
            self.note("nothing to resume: the run ended before its first checkpoint; starting from the beginning")
            self.directory.append(EVENTS, [{"event": "restarted"}])
        elif self.settings.resume and self.directory is not None:
            self.note(f"nothing to resume: {self.directory.path} holds no run yet; starting one")
        return restored.work if restored is not None else None

    def _rewind(self, version: int, pending: Collection[tuple[int, str]]) -> None:
        if self.directory is not None and self.store is not None:
            self.directory.rewind(version, pending)
            self.store.sweep()

    async def _serve(self, older: Collection[Snapshot]) -> None:
        """Publishes the backend's weights, and then the older ones that kept work still needs."""
        try:
            self.sampler.publish(await self.backend.snapshot().result())
        except BaseException:
            for snapshot in older:
                self.backend.release(snapshot)
            raise
        for snapshot in older:
            self.sampler.publish(snapshot)

    def reference(self) -> AbstractAsyncContextManager[ReferencePolicy]:
        """The weights that the run began with. Open it after `restore`, before anything is trained."""
        directory = self.directory.path if self.directory is not None else None
        return open_reference(self.backend, directory, resumed=self.resumed)

    def keep_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Appends what the journal holds since the last step's report, now that nobody writes any more."""
        if self.directory is not None:
            with suppress(OSError):  # a full disk has ended the run already, or does not undo that it is complete
                self.directory.append(EVENTS, events)

    def cutter(self, fixed: Mapping[str, Any], work: Callable[[], W]) -> CheckpointCutter[W] | None:
        """Cuts this run's checkpoints; None without a run directory."""
        if self.store is None:
            return None
        return CheckpointCutter(
            self.store,
            self.backend,
            self.sampler,
            self.pending_evaluations,
            fixed,
            work,
            self.settings.time_to_live,
        )

    async def result(self, ending: str, gate: GateStatistics | None = None) -> RunResult:
        """Gathers what the run leaves."""
        rows: Sequence[Mapping[str, float]] = self.logger.rows
        evaluations: Sequence[EvaluationReport] = self.logger.evaluations
        if self.directory is not None:
            rows = await offload(self.directory.read, METRICS)
            evaluations = [
                EvaluationReport(row["step"], row["name"], row["metrics"])
                for row in await offload(self.directory.read, EVALUATIONS)
            ]
        return RunResult(
            self.backend.version, ending, rows, evaluations, self.sampler.statistics(), self.channels, gate
        )


@contextmanager
def open_run(
    settings: RunSettings | None,
    backend: Backend,
    sampler: SamplerSettings | None,
    observers: Sequence[Observer],
    tracer: Tracer | None,
) -> Iterator[Run]:
    """Opens the run directory (where there is one) and serves the backend; closes both, whatever happens."""
    settings = settings or RunSettings()
    if settings.time_to_live is not None and not backend.capabilities.time_to_live:
        raise ValueError(
            f"the backend '{backend.capabilities.name}' keeps checkpoints until they are deleted: it has no time to live"
        )
    with ExitStack() as opened:
        directory = None
        if settings.directory is not None:
            directory = opened.enter_context(RunDirectory(settings.directory, resume=settings.resume))
            if tracer is None:
                tracer = opened.enter_context(closing(TraceWriter(directory.path / TRACE)))
        serving = opened.enter_context(closing(Sampler(backend, sampler)))
        yield Run(settings, backend, serving, directory, observers, tracer or NullTracer())
