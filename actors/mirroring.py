"""A copy of the run in a blob store, brought up to date behind every checkpoint.

    consumes: steps of saved checkpoints  produces: blobs, notes
    waits for: the store                  unblocked by: checkpoints; the end of the logger

What comes while it copies is copied next, all at once. A store that cannot be reached costs a note, not the run: the next checkpoint tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio

from actors.reclaiming import Reclaimer
from engine.runtime.channels import Receiver
from engine.runtime.offload import offload
from engine.storage.blobs import BlobStore
from engine.storage.mirror import push_run


class Mirroring:
    """Copies one run."""

    def __init__(
        self, run: Path, blobs: BlobStore, note: Callable[[str], None], reclaimer: Reclaimer | None = None
    ) -> None:
        """`reclaimer`: deletes on a server what pruning left, once the copy does not name it any more."""
        self._run = run
        self._blobs = blobs
        self._note = note
        self._reclaimer = reclaimer

    async def run(self, saved: Receiver[int]) -> None:
        """Copies after every checkpoint, and once more when the run has ended, with its last lines."""
        async for step in saved:
            newest = step
            try:
                while True:
                    newest = saved.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                pass
            await self._push(f"checkpoint {newest}")
        await self._push("the end of the run")

    async def _push(self, what: str) -> None:
        due = await self._reclaimer.due() if self._reclaimer is not None else ()
        try:
            pushed = await offload(push_run, self._run, self._blobs)
        except Exception as error:  # noqa: BLE001  (whatever a store's client raises: the run does not depend on it)
            self._note(f"{what} could not be copied to {self._blobs.address}: {type(error).__name__}: {error}")
        else:
            self._note(
                f"{what} copied to {self._blobs.address} ({pushed.sent} of {pushed.files} files, {pushed.bytes / 1e6:.1f} MB)"
            )
            if self._reclaimer is not None:
                await self._reclaimer.reclaim(due)
