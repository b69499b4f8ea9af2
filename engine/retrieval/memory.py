"""A vector store in memory: exact cosine similarity over a numpy matrix. Right up to some millions of entries; no index to tune, nothing approximate.

Dimension suffixes: `N` entries, `Q` queries, `D` dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, TypeVarTuple

import anyio
import attrs
import numpy as np

from engine.retrieval.ports import (
    DuplicateEntry,
    Embeddings,
    Entry,
    Filter,
    Match,
    checked_matrix,
    checked_queries,
    passes,
)
from engine.runtime.offload import offload
from engine.storage.files import sync_directory

T = TypeVar("T")
Args = TypeVarTuple("Args")

INLINE = 2_000_000
"""Multiplications, or numbers to copy, that are done on the event loop: about a millisecond. More goes into a thread."""
QUERIES_AT_ONCE = 64
"""Rows of the score matrix that exist at a time."""
FORMAT = "callsheet vectors 1"


@attrs.frozen(eq=False)
class _Entries:
    """What a query sees: the first `count` rows. Writers append behind them or make new lists; they change nothing that is counted."""

    count: int
    matrix_N_D: Embeddings
    """Unit rows, more than `count` where there is room to grow."""
    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]


class InMemoryVectorStore:
    """See `VectorStore`. Ties in similarity go to the smaller id, so that the same entries give the same answer in whatever order they came."""

    def __init__(self) -> None:
        self._entries = _Entries(0, np.empty((0, 0), np.float32), [], [], [])
        self._rows: dict[str, int] = {}
        self._writing = anyio.Lock()

    @property
    def dimensions(self) -> int | None:
        """D; None before the first entry."""
        return self._entries.matrix_N_D.shape[1] or None

    async def add(self, entries: Sequence[Entry]) -> None:
        """See `VectorStore`."""
        async with self._writing:
            for entry in entries:
                if entry.id in self._rows:
                    raise DuplicateEntry(
                        f"entry {entry.id!r} is in the store already: upsert() would replace it, delete() removes it"
                    )
            await self._append(entries)

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """See `VectorStore`."""
        async with self._writing:
            new = [entry for entry in entries if entry.id not in self._rows]
            if len(new) == len(entries):
                await self._append(entries)
            elif entries:
                await _placed(self._replace, entries, size=self._entries.matrix_N_D.size)

    async def query(self, queries_N_D: Embeddings, top_k: int, where: Filter | None = None) -> list[list[Match]]:
        """See `VectorStore`."""
        queries_Q_D = checked_queries(queries_N_D, top_k, self.dimensions)
        entries = self._entries
        if not len(queries_Q_D):
            return []
        size = len(queries_Q_D) * entries.count * max(queries_Q_D.shape[1], 200 if where else 0)
        return await _placed(_nearest, entries, queries_Q_D, top_k, where, size=size)

    async def delete(self, ids: Sequence[str]) -> int:
        """See `VectorStore`."""
        async with self._writing:
            gone = {self._rows[name] for name in ids if name in self._rows}
            if gone:
                await _placed(self._keep, gone, size=self._entries.matrix_N_D.size)
            return len(gone)

    async def count(self) -> int:
        """See `VectorStore`."""
        return self._entries.count

    async def save(self, directory: Path) -> None:
        """Writes everything into a new directory. Raises FileExistsError where something is."""
        await offload(_write, self._entries, directory)

    @classmethod
    async def load(cls, directory: Path) -> Self:
        """What `save` wrote. Raises ValueError naming the directory where it is not that, or not whole."""
        store = cls()
        store._entries = await offload(_read, directory)
        store._rows = {name: row for row, name in enumerate(store._entries.ids)}
        return store

    # ---- writing; the lock is held

    async def _append(self, entries: Sequence[Entry]) -> None:
        old = self._entries
        added_M_D = checked_matrix(entries, self.dimensions)
        if not len(added_M_D):
            return
        end = old.count + len(added_M_D)
        matrix_N_D = old.matrix_N_D
        if end > len(matrix_N_D):  # half as much again, so that n entries one by one cost O(n) copies
            matrix_N_D = await _placed(_grown, old, max(end, old.count * 3 // 2), added_M_D.shape[1], size=old.count)
        matrix_N_D[old.count : end] = added_M_D
        old.ids.extend(entry.id for entry in entries)
        old.texts.extend(entry.text for entry in entries)
        old.metadata.extend(dict(entry.metadata) for entry in entries)
        self._rows.update((entry.id, old.count + n) for n, entry in enumerate(entries))
        self._entries = attrs.evolve(old, count=end, matrix_N_D=matrix_N_D)

    def _replace(self, entries: Sequence[Entry]) -> None:
        old = self._entries
        given_M_D = checked_matrix(entries, self.dimensions)
        ids, texts, metadata = list(old.ids), list(old.texts), list(old.metadata)
        rows = dict(self._rows)
        for entry in entries:
            if entry.id not in rows:
                rows[entry.id] = len(ids)
                ids.append(entry.id)
                texts.append("")
                metadata.append({})
            texts[rows[entry.id]], metadata[rows[entry.id]] = entry.text, dict(entry.metadata)
        matrix_N_D = np.empty((len(ids), given_M_D.shape[1]), np.float32)
        matrix_N_D[: old.count] = old.matrix_N_D[: old.count]
        matrix_N_D[[rows[entry.id] for entry in entries]] = given_M_D
        self._rows, self._entries = rows, _Entries(len(ids), matrix_N_D, ids, texts, metadata)

    def _keep(self, gone: set[int]) -> None:
        old = self._entries
        kept = [row for row in range(old.count) if row not in gone]
        ids = [old.ids[row] for row in kept]
        texts, metadata = [old.texts[row] for row in kept], [old.metadata[row] for row in kept]
        self._rows = {name: row for row, name in enumerate(ids)}
        self._entries = _Entries(len(kept), old.matrix_N_D[kept], ids, texts, metadata)


async def _placed(function: Callable[[*Args], T], *args: *Args, size: int) -> T:
    """On the event loop where that is quick, else in a thread."""
    return function(*args) if size <= INLINE else await offload(function, *args)


def _grown(entries: _Entries, rows: int, dimensions: int) -> Embeddings:
    matrix_N_D = np.empty((rows, dimensions), np.float32)
    if entries.count:  # before the first entries, D was not known
        matrix_N_D[: entries.count] = entries.matrix_N_D[: entries.count]
    return matrix_N_D


def _nearest(entries: _Entries, queries_Q_D: Embeddings, top_k: int, where: Filter | None) -> list[list[Match]]:
    rows_M = np.arange(entries.count)
    matrix_M_D = entries.matrix_N_D[: entries.count]
    if where:
        rows_M = np.array([row for row in range(entries.count) if passes(entries.metadata[row], where)], np.int64)
        matrix_M_D = matrix_M_D[rows_M]
    if not len(rows_M):
        return [[] for _ in queries_Q_D]
    found = []
    for start in range(0, len(queries_Q_D), QUERIES_AT_ONCE):
        scores_Q_M = queries_Q_D[start : start + QUERIES_AT_ONCE] @ matrix_M_D.T
        found += [_best(entries, rows_M, scores_M, top_k) for scores_M in np.clip(scores_Q_M, -1.0, 1.0)]
    return found


def _best(entries: _Entries, rows_M: np.ndarray[Any, Any], scores_M: Any, top_k: int) -> list[Match]:
    if top_k < len(scores_M):  # all that reach the k-th best score: those that tie with it are told apart by their ids
        threshold = np.partition(scores_M, len(scores_M) - top_k)[len(scores_M) - top_k]
        places = np.flatnonzero(scores_M >= threshold)
    else:
        places = np.arange(len(scores_M))
    ranked = sorted((-float(scores_M[place]), entries.ids[rows_M[place]], int(rows_M[place])) for place in places)
    return [Match(name, -score, entries.texts[row], dict(entries.metadata[row])) for score, name, row in ranked[:top_k]]


def _write(entries: _Entries, directory: Path) -> None:
    directory.mkdir(parents=True)
    with (directory / "entries.jsonl").open("w", encoding="utf-8") as file:
        for row in range(entries.count):
            line = {"id": entries.ids[row], "text": entries.texts[row], "metadata": entries.metadata[row]}
            file.write(json.dumps(line) + "\n")
    np.save(directory / "embeddings.npy", entries.matrix_N_D[: entries.count])
    # Last, so that a directory with it in it is whole.
    (directory / "format.json").write_text(json.dumps({"format": FORMAT, "entries": entries.count}) + "\n")
    sync_directory(directory)


def _read(directory: Path) -> _Entries:
    try:
        stated = json.loads((directory / "format.json").read_text())
        if stated.get("format") != FORMAT:
            raise ValueError(f"its format is {stated.get('format')!r}, not {FORMAT!r}")
        matrix_N_D = np.load(directory / "embeddings.npy", allow_pickle=False)
        with (directory / "entries.jsonl").open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        if not len(lines) == len(matrix_N_D) == stated["entries"]:
            raise ValueError(f"{len(lines)} entries, {len(matrix_N_D)} embeddings, {stated['entries']} stated")
    except (OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{directory} holds no vector store: {error}") from error
    return _Entries(
        len(lines),
        np.ascontiguousarray(matrix_N_D, np.float32),
        [line["id"] for line in lines],
        [line["text"] for line in lines],
        [line["metadata"] for line in lines],
    )
