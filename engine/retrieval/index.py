"""Search in texts: an embedder and a store, together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import attrs

from engine.retrieval.ports import Embedder, Entry, Filter, Match, Metadata, VectorStore


@attrs.frozen
class Document:
    """A text to be found."""

    id: str
    text: str
    metadata: Metadata = attrs.field(factory=dict)
    indexed: str | None = None
    """What is embedded in its place, say title and text; None: the text."""


@attrs.frozen
class SearchIndex:
    """Documents, found by what they say."""

    embedder: Embedder
    store: VectorStore

    async def add(self, documents: Iterable[Document], *, batch: int = 256) -> int:
        """Embeds and stores documents, `batch` at a time; gives how many. A document of an id that is there replaces it."""
        number = 0
        for some in _batched(documents, batch):
            embeddings_N_D = await self.embedder.embed(
                [document.text if document.indexed is None else document.indexed for document in some]
            )
            await self.store.upsert(
                [
                    Entry(document.id, embedding_D, document.text, document.metadata)
                    for document, embedding_D in zip(some, embeddings_N_D, strict=True)
                ]
            )
            number += len(some)
        return number

    async def search(self, queries: Sequence[str], top_k: int, where: Filter | None = None) -> list[list[Match]]:
        """For each query at most `top_k` documents, best first."""
        return await self.store.query(await self.embedder.embed(queries, purpose="query"), top_k, where)


def _batched(documents: Iterable[Document], size: int) -> Iterable[tuple[Document, ...]]:
    iterator = iter(documents)
    while some := tuple(itertools.islice(iterator, size)):
        yield some
