"""Has the server delete the weights of checkpoints that the run has given up.

    checkpoint saved ──▶ [copied, where the run has a copy elsewhere] ──▶ reclaim ──▶ deleted there, struck out of discarded.jsonl

A server that does not answer costs a note and a few seconds, not the run: what is not deleted stays noted on the disk, and is asked for again behind the next
checkpoint, after a resume, or by `recipes.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import anyio

from engine.backends.errors import BackendError
from engine.backends.ports import Discarded, RemoteBackend
from engine.runtime.offload import offload
from engine.storage.discarded import Remote, forget, noted, unwanted

PATIENCE = 30.0
"""Most seconds for the server to delete what a checkpoint left, since the run waits meanwhile."""


class Reclaimer:
    """Of one run on a backend with a server."""

    def __init__(self, run: Path, backend: RemoteBackend, note: Callable[[str], None]) -> None:
        self._run = run
        self._backend = backend
        self._note = note

    async def due(self) -> Sequence[Remote]:
        """What nothing wants any more: no live snapshot, and after that is known, no directory of the run."""
        there = await offload(noted, self._run)
        if not there:
            return ()
        free = {remote.path for remote in there if not self._backend.in_use(remote.path)}
        return [remote for remote in await offload(unwanted, self._run, self._backend.elsewhere) if remote.path in free]

    async def reclaim(self, due: Sequence[Remote]) -> None:
        """Has it deleted, and strikes it out. Says what could not be."""
        if not due:
            return
        discarded = await self._asked([remote.path for remote in due])
        await offload(forget, self._run, discarded.deleted | discarded.missing)
        if discarded.kept:
            why = next(iter(discarded.kept.values()))
            self._note(
                f"{len(discarded.kept)} of the weights of deleted checkpoints are still on the server ({why}); they stay noted in "
                f"{self._run / 'discarded.jsonl'} and are asked for again"
            )

    async def _asked(self, paths: Sequence[str]) -> Discarded:
        why = f"no answer within {PATIENCE:g} s"
        with anyio.move_on_after(PATIENCE):
            try:
                return await self._backend.discard(paths)
            except BackendError as error:
                why = str(error)
        return Discarded(kept=dict.fromkeys(paths, why))
