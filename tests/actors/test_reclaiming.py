"""What deleted checkpoints left on a server goes only when nothing can want it any more, and is forgotten only when it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from actors.reclaiming import Reclaimer
from engine.backends.errors import TransientError
from engine.backends.ports import Discarded, RemoteBackend
from engine.storage.discarded import Remote, noted, remove_noting

pytestmark = pytest.mark.anyio


class Server:
    """A backend as far as a Reclaimer asks it: a directory's files are names of what it holds on the server."""

    def __init__(self) -> None:
        self.there = {"a", "b", "c"}
        self.sampled_from: set[str] = set()
        self.down = False

    def elsewhere(self, directory: Path) -> Sequence[Remote]:
        return [Remote(path.name) for path in sorted(directory.rglob("?"))]

    def in_use(self, path: str) -> bool:
        return path in self.sampled_from

    async def discard(self, paths: Sequence[str]) -> Discarded:
        await anyio.lowlevel.checkpoint()
        if self.down:
            raise TransientError("out of reach")
        known = self.there & set(paths)
        self.there -= known
        return Discarded(frozenset(known), frozenset(paths) - known)


def give_up(server: Server, run: Path, checkpoint: str, *names: str) -> None:
    (run / checkpoint).mkdir()
    for name in names:
        (run / checkpoint / name).touch()
    remove_noting(run, run / checkpoint, server.elsewhere)


async def test_what_is_sampled_from_or_held_by_another_checkpoint_stays(tmp_path: Path) -> None:
    server, notes = Server(), list[str]()
    assert isinstance(server, RemoteBackend)
    reclaimer = Reclaimer(tmp_path, server, notes.append)
    await reclaimer.reclaim(await reclaimer.due())  # nothing to do
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "b").touch()
    give_up(server, tmp_path, "first", "a", "b", "c")
    server.sampled_from.add("c")
    await reclaimer.reclaim(await reclaimer.due())
    assert server.there == {"b", "c"}
    assert {remote.path for remote in noted(tmp_path)} == {"b", "c"}
    server.sampled_from.clear()
    (tmp_path / "later" / "b").unlink()
    await reclaimer.reclaim(await reclaimer.due())
    assert server.there == set()
    assert noted(tmp_path) == []
    assert notes == []


async def test_what_comes_into_use_before_the_disk_was_read_stays(tmp_path: Path) -> None:
    """Use is asked for first: weights that are free then can only come back through a directory, which is read after that."""
    server = Server()
    give_up(server, tmp_path, "first", "a")
    order: list[str] = []
    in_use, elsewhere = server.in_use, server.elsewhere
    server.in_use = lambda path: bool(order.append("use")) or in_use(path)  # type: ignore[method-assign]
    server.elsewhere = lambda run: order.append("disk") or elsewhere(run)  # type: ignore[method-assign, func-returns-value]
    assert [remote.path for remote in await Reclaimer(tmp_path, server, print).due()] == ["a"]
    assert order == ["use", "disk"]


async def test_a_server_out_of_reach_costs_a_note(tmp_path: Path) -> None:
    server, notes = Server(), list[str]()
    give_up(server, tmp_path, "first", "a", "x")
    reclaimer = Reclaimer(tmp_path, server, notes.append)
    server.down = True
    await reclaimer.reclaim(await reclaimer.due())
    assert len(noted(tmp_path)) == 2
    assert len(notes) == 1
    assert "2 of the weights of deleted checkpoints are still on the server (out of reach)" in notes[0]
    server.down = False
    await reclaimer.reclaim(await reclaimer.due())
    assert noted(tmp_path) == []  # x was gone already
    assert server.there == {"b", "c"}
