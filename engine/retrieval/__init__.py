"""Finding texts by what they say: an embedding port, a vector-store port, and their adapters.

    index = SearchIndex(HashingEmbedder(), InMemoryVectorStore())
    await index.add([Document("1", "Paris is the capital of France.")])
    ((match,),) = await index.search(["capital of France"], top_k=1)

| embedder | where | needs |
|---|---|---|
| `HashingEmbedder` | here: spelling, no meaning | nothing |
| `engine.backends.local.encoder.open_encoder` | any Hugging Face encoder in this process | `callsheet[local]` |
| `open_http_embedder` | a server of `/v1/embeddings` | nothing |

| store | where | needs |
|---|---|---|
| `InMemoryVectorStore` | numpy, exact | nothing |
| `open_chroma` | embedded chromadb, in memory or in a directory | `callsheet[search]` |

A store or an embedder of one's own is a class with the methods of `engine.retrieval.ports`; `engine.retrieval.conformance` checks what they promise.
"""

from __future__ import annotations

from engine.retrieval.chroma import open_chroma
from engine.retrieval.hashing import HashingEmbedder
from engine.retrieval.index import Document, SearchIndex
from engine.retrieval.memory import InMemoryVectorStore
from engine.retrieval.ports import Between, DuplicateEntry, Embedder, Entry, Filter, Match, VectorStore
from engine.retrieval.remote import HttpSettings, open_http_embedder

__all__ = [
    "Between",
    "Document",
    "DuplicateEntry",
    "Embedder",
    "Entry",
    "Filter",
    "HashingEmbedder",
    "HttpSettings",
    "InMemoryVectorStore",
    "Match",
    "SearchIndex",
    "VectorStore",
    "open_chroma",
    "open_http_embedder",
]
