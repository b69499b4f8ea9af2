"""Weights on a server that a run refers to no more: noted before the directory that named them goes, and until the server has deleted them.

    <run>/discarded.jsonl    a line each: path on the server, the server's name, when it ends by itself

A checkpoint of a backend on a server is a small file that says where its weights lie. Deleting that file alone would leave them there for ever, with nobody
who knows of them; so the line is on the disk before the file goes, and goes itself only when the server has said that the weights are gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import attrs

from engine.storage.files import append_lines, keep_lines, read_lines

DISCARDED = "discarded.jsonl"


@attrs.frozen
class Remote:
    """Something saved that lies on a server."""

    path: str
    """Its name there."""
    server: str = ""
    """Where, for people."""
    expires: str | None = None
    """When the server deletes it by itself, ISO 8601; None: never."""


Elsewhere = Callable[[Path], Sequence[Remote]]
"""What was saved into a directory, or anywhere below it, and lies on a server. Reads files."""


def nothing_elsewhere(_: Path) -> Sequence[Remote]:
    """Of a backend whose checkpoints are whole in their directories."""
    return ()


def remove_noting(run: Path, directory: Path, elsewhere: Elsewhere) -> None:
    """Deletes a directory of a run, what it names on a server noted first."""
    append_lines(run / DISCARDED, map(attrs.asdict, elsewhere(directory)), durable=True)
    shutil.rmtree(directory)


def noted(run: Path) -> list[Remote]:
    """What was noted and not yet forgotten, each once."""
    found = {row["path"]: Remote(**row) for row in read_lines(run / DISCARDED)}
    return list(found.values())


def unwanted(run: Path, elsewhere: Elsewhere) -> list[Remote]:
    """What was noted and nothing in the run's directory names any more: two checkpoints may hold the same older weights."""
    there = noted(run)
    wanted = {remote.path for remote in elsewhere(run)} if there else set()
    return [remote for remote in there if remote.path not in wanted]


def forget(run: Path, paths: Collection[str]) -> None:
    """Strikes out what the server has deleted. With the last line the file goes."""
    gone = set(paths)
    if not gone:
        return
    keep_lines(run / DISCARDED, lambda row: row["path"] not in gone)
    if not noted(run):
        (run / DISCARDED).unlink(missing_ok=True)
