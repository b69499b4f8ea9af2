"""Promises of a backend whose weights lie on a server (`ports.RemoteBackend`)."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.backends.conformance.subject import Subject, require, snapshot_of
from engine.backends.errors import UnusableState
from engine.backends.ports import RemoteBackend


async def discarded_weights_are_gone(subject: Subject) -> None:
    """A backend with a server says where saved weights lie, and which are in use; what it deletes there cannot be loaded any more. Others keep all in the directory."""
    with _directories() as (above, state, kept):
        async with subject.open() as backend:
            if not isinstance(backend, RemoteBackend):
                return
            snapshot = await snapshot_of(backend)
            await backend.save_state(state).result()
            await backend.save_snapshot(snapshot, kept).result()
            paths = []
            for directory, what in ((state, "state"), (kept, "snapshot")):
                found = [remote.path for remote in backend.elsewhere(directory)]
                require(len(found) == 1, f"elsewhere() of a directory with one {what} gave {found}")
                paths += found
            require(
                sorted(remote.path for remote in backend.elsewhere(above)) == sorted(paths),
                "elsewhere() of the directory above is not both",
            )
            require(not backend.in_use(paths[0]), "a state that was saved counts as in use")
            require(backend.in_use(paths[1]), "a live snapshot does not count as in use")
            discarded = await backend.discard([paths[0]])
            require(discarded.deleted == {paths[0]}, f"deleting a state gave {discarded}")
            await _unusable(backend.load_state(state).result(), "a state")
            again = await backend.discard([paths[0]])
            require(again.missing == {paths[0]}, f"deleting it again gave {again}")
            require(bool(await backend.sample(snapshot, subject.request())), "the live snapshot gave no sample")
            backend.release(snapshot)
            require(not backend.in_use(paths[1]), "a released snapshot counts as in use")
            discarded = await backend.discard([paths[1]])
            require(discarded.deleted == {paths[1]}, f"deleting a kept snapshot after its release gave {discarded}")
            await _unusable(backend.load_snapshot(kept).result(), "a snapshot")


@contextmanager
def _directories() -> Iterator[tuple[Path, Path, Path]]:
    with TemporaryDirectory(prefix="conformance-") as name:
        above = Path(name)
        for each in ("state", "snapshot"):
            (above / each).mkdir()
        yield above, above / "state", above / "snapshot"


async def _unusable(loading: Awaitable[object], what: str) -> None:
    try:
        await loading
    except UnusableState:
        return
    require(False, f"{what} was loaded after its weights had been deleted")


CHECKS = (discarded_weights_are_gone,)
