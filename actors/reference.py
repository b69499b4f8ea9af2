"""The reference policy of a run: the weights it began with, frozen before any training and kept beside its checkpoints.

    <run>/reference/     what the backend's `save_snapshot` wrote

A KL penalty or a preference loss measures how far training has come from *there*. A resumed run therefore loads what the first start wrote; it never
takes its own, already trained weights for the reference, and says so where the original is missing or damaged.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from engine.backends.errors import BackendError, UnusableState
from engine.backends.ports import Backend, RemoteBackend, SamplingBackend, Snapshot
from engine.backends.values import Completion, Logprobs, ModelInput, SampleRequest
from engine.runtime.offload import offload
from engine.storage.discarded import Elsewhere, nothing_elsewhere, remove_noting
from engine.storage.files import sync_directory
from engine.storage.run_directory import RunDirectoryError

REFERENCE = "reference"
"""Name of its directory in a run directory."""


class ReferencePolicy:
    """Frozen weights that score (a `Scorer`) and answer (a `Policy`), until they are released."""

    def __init__(self, backend: SamplingBackend, snapshot: Snapshot) -> None:
        self._backend = backend
        self._snapshot: Snapshot | None = snapshot

    async def compute_logprobs(self, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN."""
        return await self._backend.compute_logprobs(self._held(), sequence)

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions."""
        return await self._backend.sample(self._held(), request)

    def release(self) -> None:
        """Gives the weights up. A second call does nothing."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._backend.release(snapshot)

    def _held(self) -> Snapshot:
        if self._snapshot is None:
            raise BackendError("the reference policy was released: its run has ended")
        return self._snapshot


async def freeze_reference(backend: Backend, run: Path | None) -> ReferencePolicy:
    """The backend's weights as they are now; written into `<run>/reference`, whole or not at all, where there is a run directory."""
    reference = ReferencePolicy(backend, await backend.snapshot().result())
    try:
        if run is not None:
            partial = run / f".{REFERENCE}.partial"
            elsewhere = backend.elsewhere if isinstance(backend, RemoteBackend) else nothing_elsewhere
            await offload(_empty, run, partial, elsewhere)
            await backend.save_snapshot(reference._held(), partial).result()  # noqa: SLF001  (its own maker)
            await offload(_commit, run, partial, elsewhere)
    except BaseException:
        reference.release()
        raise
    return reference


async def load_reference(backend: Backend, run: Path) -> ReferencePolicy:
    """The weights that `freeze_reference` wrote. Raises RunDirectoryError, saying what to do, where they are missing or damaged."""
    directory = run / REFERENCE
    if not directory.is_dir():
        raise RunDirectoryError(
            f"{directory} is missing: a resumed run needs the reference policy it began with, and the weights trained since are not that; "
            f"put it back, or start a new run in another directory"
        )
    try:
        return ReferencePolicy(backend, await backend.load_snapshot(directory).result())
    except UnusableState as error:
        raise RunDirectoryError(
            f"the run's reference policy cannot be used ({error}): put the original back, or start a new run in another directory"
        ) from error


@asynccontextmanager
async def open_reference(backend: Backend, run: Path | None, *, resumed: bool) -> AsyncIterator[ReferencePolicy]:
    """A reference policy for the time of a block: frozen now, or, where training goes on (`resumed`), the one frozen then.

    The training programs do this themselves where a setting needs it. For whoever holds a run directory of their own.
    """
    reference = await (load_reference(backend, run) if resumed and run is not None else freeze_reference(backend, run))
    try:
        yield reference
    finally:
        reference.release()


def _empty(run: Path, directory: Path, elsewhere: Elsewhere) -> None:
    if directory.exists():  # of a crash
        remove_noting(run, directory, elsewhere)
    directory.mkdir(parents=True)


def _commit(run: Path, partial: Path, elsewhere: Elsewhere) -> None:
    final = run / REFERENCE
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for directory in sorted({path.parent for path in partial.rglob("*")} | {partial}):
        sync_directory(directory)
    if final.exists():  # of an attempt that never came to a checkpoint
        remove_noting(run, final, elsewhere)
    partial.rename(final)
    sync_directory(final.parent)
