"""A run's checkpoints: cut at a step boundary, written by the logger, restored before the actors start.

    <step>/run.json       where the run stood, and the settings it must go on with
    <step>/work.json|npz  the program's own state: gate, source, finished and unfinished groups
    <step>/trainer/       the backend's weights and optimizer
    <step>/snapshots/<v>/ older weights that groups or evaluations still need

The cut is consistent because nothing waits while it is made: the backend's writes are submitted at that instant, the rest is frozen then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs

from actors.reports import CheckpointReport
from actors.sampler import Sampler
from engine.backends.errors import UnusableState
from engine.backends.ports import Backend, Pending, Snapshot
from engine.runtime.offload import offload
from engine.storage.blobs import BlobStore
from engine.storage.checkpoints import CheckpointStore, StoredCheckpoint, UnusableCheckpoint
from engine.storage.encoding import read_value, write_value
from engine.storage.keeping import Best, Keeping
from engine.storage.run_directory import RunDirectory, RunDirectoryError

W = TypeVar("W")

_at_least_one: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen
class RunSettings:
    """Where a run is kept, and how it goes on."""

    directory: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """The run directory; None: nothing is written."""
    resume: bool = False
    """Go on with the run in the directory, from its newest usable checkpoint."""
    checkpoint_every: int | None = attrs.field(default=20, validator=_at_least_one)
    """Steps between checkpoints; None: only the last one."""
    keep_checkpoints: int | None = attrs.field(default=3, validator=_at_least_one)
    """How many of the newest checkpoints to keep; None: all."""
    keep_every: int | None = attrs.field(default=None, validator=_at_least_one)
    """Keep those, too, whose step is a multiple of this."""
    best: Best | None = None
    """Keep the best checkpoint, too, by a metric of an evaluation."""
    time_to_live: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    """Seconds after which a server may drop a checkpoint's weights, where the backend has such a thing. Those of `keep_every` and the run's last one have none."""

    mirror: BlobStore | None = None
    """Where to keep a copy of the run, brought up to date behind every checkpoint, so that it can go on on another machine (`engine.storage.mirror`)."""

    @property
    def keeping(self) -> Keeping:
        """Which checkpoints stay."""
        return Keeping(self.keep_checkpoints, self.keep_every, self.best)


@attrs.frozen
class RunState:
    """Where a run stood at a cut."""

    version: int
    elapsed: float
    pending_evaluations: tuple[tuple[int, str], ...]
    fixed: Mapping[str, Any]
    """Settings that a resumed run must share, because the kept work was made under them."""


@attrs.frozen
class Restored(Generic[W]):
    """A checkpoint that has been loaded into the backend."""

    state: RunState
    work: W
    snapshots: Mapping[int, Snapshot]


class CheckpointCutter(Generic[W]):
    """Cuts checkpoints of one run."""

    def __init__(
        self,
        store: CheckpointStore,
        backend: Backend,
        sampler: Sampler,
        pending_evaluations: set[tuple[int, str]],
        fixed: Mapping[str, Any],
        work: Callable[[], W],
        time_to_live: float | None = None,
    ) -> None:
        """`work()` freezes the program's own state, without waiting. `time_to_live`: of what may go, in seconds; None: it stays until it is deleted."""
        self._store = store
        self._backend = backend
        self._sampler = sampler
        self._pending_evaluations = pending_evaluations
        self._fixed = fixed
        self._work = work
        self._time_to_live = time_to_live

    def __call__(self, version: int, elapsed: float, last: bool) -> CheckpointReport:
        """Freezes everything now. Must be called at a boundary, where `version` optimizer steps are behind all that is submitted."""
        partial = self._store.begin(version)
        submitted: list[Pending[None]] = [
            self._backend.save_snapshot(snapshot, _made(partial / "snapshots" / str(older)))
            for older, snapshot in self._sampler.in_use().items()
            if older != version  # that one is the trainer's state
        ]
        every = self._store.keeping.every
        stays = last or (every is not None and version % every == 0)
        time_to_live = None if stays else self._time_to_live
        submitted.append(self._backend.save_state(_made(partial / "trainer"), time_to_live=time_to_live))
        state = RunState(version, elapsed, tuple(sorted(self._pending_evaluations)), self._fixed)
        work = self._work()

        def write(directory: Path) -> None:
            (directory / "run.json").write_text(json.dumps(attrs.asdict(state), indent=1), encoding="utf-8")
            write_value(work, directory, "work")

        return CheckpointReport(version, partial, submitted, write, expires=time_to_live is not None)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


async def restore(
    store: CheckpointStore, backend: Backend, kind: type[W], fixed: Mapping[str, Any], note: Callable[[str], None]
) -> Restored[W] | None:
    """Loads the newest usable checkpoint into the backend; says which ones are not usable, and why.

    None when the run never finished a checkpoint. Raises RunDirectoryError when it did and none is usable, or when the run's fixed settings differ.
    """
    unusable = 0
    for checkpoint in store.newest_first():
        try:
            return await _load(store, checkpoint, backend, kind, fixed)
        except (UnusableCheckpoint, UnusableState) as error:
            unusable += 1
            note(f"checkpoint {checkpoint.step} cannot be used ({error}); trying the one before")
    if unusable:
        raise RunDirectoryError(
            f"{store.run.path}: none of its {unusable} checkpoints can be used; start a new run in another directory"
        )
    return None


async def _load(
    store: CheckpointStore, checkpoint: StoredCheckpoint, backend: Backend, kind: type[W], fixed: Mapping[str, Any]
) -> Restored[W]:
    await offload(store.verify, checkpoint)
    try:
        state = await offload(_read_state, checkpoint.path)
        work = await offload(read_value, kind, checkpoint.path, "work")
    except Exception as error:
        raise UnusableCheckpoint(f"{checkpoint.path}: {type(error).__name__}: {error}") from error
    _check_fixed(store.run, state.fixed, fixed)
    await backend.load_state(checkpoint.path / "trainer").result()
    if backend.version != state.version:
        raise UnusableCheckpoint(
            f"{checkpoint.path}: the backend restored {backend.version} optimizer steps where the run had taken {state.version}"
        )
    snapshots: dict[int, Snapshot] = {}
    try:
        for directory in sorted((checkpoint.path / "snapshots").glob("*")):
            snapshots[int(directory.name)] = await backend.load_snapshot(directory).result()
    except BaseException:
        for snapshot in snapshots.values():
            backend.release(snapshot)
        raise
    return Restored(state, work, snapshots)


def _read_state(path: Path) -> RunState:
    tree = json.loads((path / "run.json").read_text(encoding="utf-8"))
    return RunState(
        tree["version"],
        tree["elapsed"],
        tuple((int(version), str(name)) for version, name in tree["pending_evaluations"]),
        tree["fixed"],
    )


def _check_fixed(run: RunDirectory, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    given = json.loads(json.dumps(given))
    changed = [
        f"{name} was {kept.get(name)!r}, now {given.get(name)!r}"
        for name in sorted({*kept, *given})
        if kept.get(name) != given.get(name)
    ]
    if changed:
        raise RunDirectoryError(
            f"{run.path}: a resumed run keeps its settings, but {'; '.join(changed)}. Give the old values, or start a new run"
        )
