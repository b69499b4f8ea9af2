"""What lies on the server: listing, time-to-live, deletion, without a run. For housekeeping; a run's own checkpoints are kept by its run directory.

async with tinker.open_store() as store:
    for stored in await store.checkpoints(): ...
    await store.delete(stored.path)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any

import attrs

from engine.backends.errors import BackendError, RequestRejected
from engine.backends.futures import wait_for
from engine.backends.ports import Discarded
from engine.backends.tinker.failures import as_backend_error
from engine.backends.tinker.options import whole_seconds
from engine.backends.tinker.patience import Patience
from engine.backends.tinker.sdk import Sdk
from engine.backends.tinker.session import deletions, whole_path
from engine.backends.tinker.submissions import Operation, Submissions

_PAGE = 100
_DEADLINE = 120.0


@attrs.frozen
class StoredCheckpoint:
    """Weights that lie on the server."""

    path: str
    """tinker://<run>/weights/<name> of a state with its optimizer, tinker://<run>/sampler_weights/<name> of a snapshot."""
    kind: str
    """training, sampler or external."""
    saved: datetime
    size: int | None = None
    """Bytes, where the server says."""
    expires: datetime | None = None
    """When the server deletes it; None: never, or the server does not say."""


class CheckpointStore:
    """The checkpoints of whoever the key belongs to. Made by `engine.backends.tinker.open_store`."""

    def __init__(self, sdk: Sdk, rest: Any, submissions: Submissions, patience: Patience, server: str) -> None:
        self.server = server
        """The server's name in messages, and in what was saved there."""
        self._sdk = sdk
        self._rest = rest
        self._submissions = submissions
        self._patience = patience

    async def checkpoints(self, run: str | None = None) -> list[StoredCheckpoint]:
        """All checkpoints, or those of one training run (the part of a path behind tinker://); the newest first."""
        found = await self._asked(lambda: self._of_run(run) if run is not None else self._all(), "listing checkpoints")
        return sorted(found, key=lambda stored: stored.saved, reverse=True)

    async def delete(self, path: str) -> None:
        """Deletes a checkpoint for good. Raises RequestRejected for a path that the server does not have."""
        _check(path)
        await self._asked(
            lambda: self._call("delete_checkpoint_from_tinker_path", whole_path(path)), f"deleting {path}"
        )

    async def discard(self, paths: Sequence[str]) -> Discarded:
        """Deletes several, one after the other, and says what became of each. Raises TransientError where no answer comes at all."""

        def ask(path: str) -> Future[Any]:
            _check(path)
            return self._sdk.future(self._rest.delete_checkpoint_from_tinker_path(whole_path(path)))

        discarded: Discarded = await self._asked(lambda: deletions(ask, paths), "deleting checkpoints")
        return discarded

    async def set_ttl(self, path: str, seconds: float | None) -> None:
        """Has the server delete a checkpoint `seconds` from now (at least an hour); None: never."""
        _check(path)
        await self._asked(
            lambda: self._call("set_checkpoint_ttl_from_tinker_path", whole_path(path), whole_seconds(seconds)),
            f"setting the time-to-live of {path}",
        )

    def _all(self) -> Generator[Future[Any], Any, list[StoredCheckpoint]]:
        found: list[StoredCheckpoint] = []
        try:
            while True:
                page = (yield from self._call("list_user_checkpoints", limit=_PAGE, offset=len(found))).checkpoints
                found += map(_stored, page)
                if len(page) < _PAGE:
                    return found
        except GeneratorExit:
            raise
        except Exception as error:
            if not isinstance(as_backend_error(error, ""), RequestRejected):
                raise
        # A server without that list (SkyRL's) has one for each run.
        offset = 0
        while True:
            runs = (yield from self._call("list_training_runs", limit=_PAGE, offset=offset)).training_runs
            for each in runs:
                found += yield from self._of_run(each.training_run_id)
            offset += len(runs)
            if len(runs) < _PAGE:
                return found

    def _of_run(self, run: str) -> Generator[Future[Any], Any, list[StoredCheckpoint]]:
        answer = yield from self._call("list_checkpoints", run)
        return [_stored(checkpoint) for checkpoint in answer.checkpoints]

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Generator[Future[Any], Any, Any]:
        return (yield self._sdk.future(getattr(self._rest, method)(*args, **kwargs)))

    async def _asked(self, steps: Callable[[], Operation[Any]], what: str) -> Any:
        future = self._submissions.aside(steps())
        await self._patience.wait(future, _DEADLINE, what)
        try:
            return await wait_for(future)
        except BackendError:
            raise
        except Exception as error:
            raise as_backend_error(error, what) from error


def _stored(checkpoint: Any) -> StoredCheckpoint:
    return StoredCheckpoint(
        checkpoint.tinker_path,
        checkpoint.checkpoint_type,
        checkpoint.time,
        getattr(checkpoint, "size_bytes", None),
        getattr(checkpoint, "expires_at", None),
    )


def _check(path: str) -> None:
    if not path.startswith("tinker://") or len(path.split("/")) not in (4, 5):
        raise RequestRejected(f"{path!r} is no path of a checkpoint: tinker://<run>/weights/<name> is one")
