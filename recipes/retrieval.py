"""The embedder and the vector store of a recipe, by flags.

async with open_embedder(config) as embedder, open_store(config) as store:
    index = SearchIndex(embedder, store)
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import attrs

if TYPE_CHECKING:
    from engine.data import Passage
    from engine.retrieval import Document, Embedder, InMemoryVectorStore, SearchIndex, VectorStore

API_KEY = "OPENAI_API_KEY"
VECTORS, NOTE = "vectors", "index.json"
"""In the store's directory: the vectors of a store in memory, and what the index is of."""


@attrs.frozen(kw_only=True)
class RetrievalConfig:
    """How passages are found."""

    embedder: Literal["hashing", "local", "http"] = "hashing"
    """hashing: by spelling alone, nothing needed. local: a sentence encoder in this process. http: a server of /v1/embeddings."""
    model: str = "intfloat/e5-base-v2"
    """The encoder, by Hugging Face name or path, or as the server calls it."""
    url: str = "http://127.0.0.1:8000/v1"
    """The server; its key is taken from the environment variable OPENAI_API_KEY."""
    query_prefix: str | None = None
    """Put before each query; None: what the model itself says, or nothing."""
    document_prefix: str | None = None
    """Put before each passage; None: what the model itself says, or nothing."""
    dimensions: int = attrs.field(default=512, validator=attrs.validators.ge(8))
    """Dimensions of hashed embeddings."""
    threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """CPU threads of the local encoder; None: torch's choice."""
    store: Literal["memory", "chroma"] = "memory"
    """memory: numpy, exact. chroma: embedded chromadb (pip install 'callsheet[search]'), for what does not fit."""
    directory: Path | None = None
    """Where the store is kept, so that the next run need not embed the corpus again; None: nowhere."""


@asynccontextmanager
async def open_embedder(config: RetrievalConfig) -> AsyncIterator[Embedder]:
    """The embedder that the flags name."""
    from engine.retrieval import HashingEmbedder, HttpSettings, open_http_embedder

    query, document = config.query_prefix, config.document_prefix
    if config.embedder == "local":
        from engine.backends.local.encoder import open_encoder

        async with open_encoder(
            config.model, query_prefix=query, document_prefix=document, threads=config.threads
        ) as encoder:
            yield encoder
    elif config.embedder == "http":
        settings = HttpSettings(query_prefix=query or "", document_prefix=document or "")
        key = os.environ.get(API_KEY) or None
        async with open_http_embedder(config.url, config.model, api_key=key, settings=settings) as remote:
            yield remote
    else:
        yield HashingEmbedder(config.dimensions)


@asynccontextmanager
async def open_store(config: RetrievalConfig) -> AsyncIterator[VectorStore]:
    """The store that the flags name, with what was kept in its directory."""
    from engine.retrieval import InMemoryVectorStore, open_chroma

    if config.store == "chroma":
        async with open_chroma(config.directory) as store:
            yield store
    elif config.directory is not None and (config.directory / VECTORS).exists():
        yield await InMemoryVectorStore.load(config.directory / VECTORS)
    else:
        yield InMemoryVectorStore()


async def fill(
    config: RetrievalConfig, index: SearchIndex, passages: Sequence[Passage], corpus: str, *, batch: int = 256
) -> None:
    """Embeds a corpus, unless the store's directory holds it already. Passages without an id are known by their place.

    Raises ValueError where the directory holds another corpus, or this one as another embedder sees it: nothing would be found there, and nobody told why.
    """
    directory = config.directory
    named = {"hashing": ("dimensions",), "local": ("model",), "http": ("model", "url")}[config.embedder]
    stated = {
        "corpus": corpus,
        "passages": len(passages),
        "embedder": config.embedder,
        **{name: getattr(config, name) for name in (*named, "query_prefix", "document_prefix")},
    }
    note = None if directory is None else directory / NOTE
    if note is not None and note.exists():
        held = json.loads(note.read_text(encoding="utf-8"))
        other = [name for name in stated if held.get(name) != stated[name]]
        if other:
            raise ValueError(
                f"{directory} holds an index with {other[0]} {held.get(other[0])!r}, not {stated[other[0]]!r}: take another directory for this one"
            )
        return
    await index.add((_document(number, passage) for number, passage in enumerate(passages)), batch=batch)
    if directory is not None and note is not None:
        directory.mkdir(parents=True, exist_ok=True)
        if config.store == "memory":
            await cast("InMemoryVectorStore", index.store).save(directory / VECTORS)
        note.write_text(json.dumps(stated) + "\n", encoding="utf-8")  # last: what it stands beside is whole


def _document(number: int, passage: Passage) -> Document:
    from engine.retrieval import Document

    title = {"title": passage.title} if passage.title else {}
    indexed = f"{passage.title}\n{passage.text}" if passage.title else None
    return Document(passage.id or str(number), passage.text, title, indexed)
