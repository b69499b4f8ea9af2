"""A vector store in chromadb, embedded in this process: in memory, or in a directory that outlives it (extra `search`).

    async with open_chroma(Path("wiki"), "passages") as store: ...

Chroma finds neighbours approximately (HNSW): for tens of entries it is exact, for millions it is quick. It never embeds anything here: its own embedding
function, which would download a model, is never asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import numpy as np

from engine.retrieval.ports import (
    Between,
    Condition,
    DuplicateEntry,
    Embeddings,
    Entry,
    Filter,
    Match,
    checked_matrix,
    checked_queries,
)

T = TypeVar("T")
Args = TypeVarTuple("Args")

SEARCH_BREADTH = 200
"""HNSW's ef: neighbours looked at for each query, at least top_k. Chroma's own 100 misses more of them."""


@asynccontextmanager
async def open_chroma(directory: Path | None = None, collection: str = "documents") -> AsyncIterator[ChromaVectorStore]:
    """A store in `directory` (made where it is missing), or in memory where that is None. Raises ImportError naming the extra without chromadb.

    Names of collections are Chroma's: 3 to 512 letters, digits, dots, dashes and underscores.
    """
    if importlib.util.find_spec("chromadb") is None:
        raise ImportError("this vector store needs chromadb: pip install 'callsheet[search]'")
    store = await anyio.to_thread.run_sync(_open, directory, collection)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(store.close)


def _open(directory: Path | None, collection: str) -> ChromaVectorStore:
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    if directory is None:
        client: Any = chromadb.EphemeralClient(settings=settings)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        client = chromadb.PersistentClient(path=str(directory), settings=settings)
    made = client.get_or_create_collection(
        collection,
        embedding_function=None,
        configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_BREADTH}},
    )
    return ChromaVectorStore(client, made, in_memory=directory is None)


class ChromaVectorStore:
    """See `open_chroma`. A `VectorStore`. Calls go one after another, each in a thread."""

    def __init__(self, client: Any, collection: Any, *, in_memory: bool) -> None:
        self._client = client
        self._collection = collection
        self._in_memory = in_memory
        self._lock = anyio.Lock()
        peeked = collection.get(limit=1, include=["embeddings"])["embeddings"]
        self._dimensions: int | None = None if peeked is None or not len(peeked) else len(peeked[0])
        self._most = int(client.get_max_batch_size())

    @property
    def dimensions(self) -> int | None:
        """D; None before the first entry."""
        return self._dimensions

    async def add(self, entries: Sequence[Entry]) -> None:
        """See `VectorStore`."""
        await self._run(self._write, entries, False)

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """See `VectorStore`."""
        await self._run(self._write, entries, True)

    async def query(self, queries_N_D: Embeddings, top_k: int, where: Filter | None = None) -> list[list[Match]]:
        """See `VectorStore`."""
        queries_N_D = checked_queries(queries_N_D, top_k, self._dimensions)
        if not len(queries_N_D):
            return []
        return await self._run(self._query, queries_N_D, top_k, where)

    async def delete(self, ids: Sequence[str]) -> int:
        """See `VectorStore`."""
        return await self._run(self._delete, ids)

    async def count(self) -> int:
        """See `VectorStore`."""
        return int(await self._run(self._collection.count))

    def close(self) -> None:
        """What lies in memory is gone."""
        if self._in_memory:
            self._client.delete_collection(self._collection.name)
        close = getattr(self._client, "close", None)
        if close is not None:
            close()

    async def _run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        async with self._lock:
            return await anyio.to_thread.run_sync(function, *args)

    # ---- in the thread

    def _write(self, entries: Sequence[Entry], replace: bool) -> None:
        matrix_N_D = checked_matrix(entries, self._dimensions)
        if not entries:
            return
        ids = [entry.id for entry in entries]
        taken = self._held(ids)
        if taken and not replace:
            raise DuplicateEntry(
                f"entry {taken[0]!r} is in the store already: upsert() would replace it, delete() removes it"
            )
        if taken:  # Chroma's own upsert keeps old metadata fields that the new entry lacks
            self._collection.delete(ids=taken)
        for start in range(0, len(ids), self._most):
            end = start + self._most
            self._collection.add(
                ids=ids[start:end],
                embeddings=matrix_N_D[start:end],
                documents=[entry.text for entry in entries[start:end]],
                metadatas=[dict(entry.metadata) or None for entry in entries[start:end]],
            )
        self._dimensions = matrix_N_D.shape[1]

    def _held(self, ids: Sequence[str]) -> list[str]:
        held: list[str] = []
        for start in range(0, len(ids), self._most):
            held += self._collection.get(ids=list(ids[start : start + self._most]), include=[])["ids"]
        return held

    def _query(self, queries_N_D: Embeddings, top_k: int, where: Filter | None) -> list[list[Match]]:
        number = self._collection.count()
        none_will_do = any(
            isinstance(value, (tuple, list, frozenset)) and not value for value in (where or {}).values()
        )
        if not number or none_will_do:  # Chroma knows no empty list of alternatives
            return [[] for _ in queries_N_D]
        found = self._collection.query(
            query_embeddings=queries_N_D,
            n_results=min(top_k, number),
            where=_where(where),
            include=["documents", "metadatas", "distances"],
        )
        return [
            sorted(
                (
                    Match(name, float(np.clip(1.0 - distance, -1.0, 1.0)), text or "", metadata or {})
                    for name, distance, text, metadata in zip(*columns, strict=True)
                ),
                key=lambda match: (-match.score, match.id),
            )
            for columns in zip(found["ids"], found["distances"], found["documents"], found["metadatas"], strict=True)
        ]

    def _delete(self, ids: Sequence[str]) -> int:
        held = self._held(list(dict.fromkeys(ids)))
        for start in range(0, len(held), self._most):
            self._collection.delete(ids=held[start : start + self._most])
        return len(held)


def _where(where: Filter | None) -> dict[str, Any] | None:
    """The filter in Chroma's words."""
    conditions = [part for field, condition in (where or {}).items() for part in _conditions(field, condition)]
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else {"$and": conditions}


def _conditions(field: str, condition: Condition) -> list[dict[str, Any]]:
    if isinstance(condition, Between):
        return [
            {field: {sign: limit}}
            for sign, limit in (("$gte", condition.low), ("$lte", condition.high))
            if np.isfinite(limit)
        ] or [{field: {"$gte": -1.7e308}}]
    if isinstance(condition, (tuple, list, frozenset)):
        alternatives: list[dict[str, Any]] = [{field: {"$eq": value}} for value in condition]
        return alternatives if len(alternatives) == 1 else [{"$or": alternatives}]
    return [{field: {"$eq": condition}}]
