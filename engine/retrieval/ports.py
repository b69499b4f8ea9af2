"""The two ports of retrieval: texts to vectors, and vectors to their nearest neighbours.

    texts ──Embedder──> embeddings_N_D ──VectorStore──> matches, nearest first

Dimension suffixes: `N` texts or queries, `D` dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar]
Purpose = Literal["document", "query"]


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors. May be called concurrently."""

    @property
    def dimensions(self) -> int | None:
        """D; None while it is not known (a server tells it with its first answer)."""
        ...

    @property
    def unit_norm(self) -> bool:
        """Whether every embedding has length 1, so that a dot product is a cosine."""
        ...

    async def embed(self, texts: Sequence[str], *, purpose: Purpose = "document") -> Embeddings:
        """One finite vector for each text, in order: shape (N, D), float32; (0, D) for no texts. The same text gives the same vector.

        `purpose`: models that were trained for search embed a question otherwise than what it is to find; the others ignore it.
        """
        ...


@attrs.frozen
class Between:
    """A filter on numbers: from `low` to `high`, both included."""

    low: float = -np.inf
    high: float = np.inf

    def __attrs_post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"a range from {self.low} to {self.high} holds no number")


Condition = Scalar | Between | tuple[Scalar, ...] | list[Scalar] | frozenset[Scalar]
"""One value, any of several values, or a range of numbers."""
Filter = Mapping[str, Condition]
"""Field → condition; all must hold. An entry without the field does not match."""


def _vector(value: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(value, dtype=np.float32)


@attrs.frozen
class Entry:
    """What a store keeps. Any direction that is not zero will do: only the direction counts."""

    id: str
    embedding: NDArray[np.float32] = attrs.field(converter=_vector, eq=attrs.cmp_using(eq=np.array_equal), repr=False)
    """Shape (D,)."""
    text: str = ""
    metadata: Metadata = attrs.field(factory=dict)
    """Strings, numbers and truth values. A field holds values of one kind; a truth value is no number."""


@attrs.frozen
class Match:
    """An entry that was found."""

    id: str
    score: float
    """Cosine similarity, −1 to 1."""
    text: str = ""
    metadata: Metadata = attrs.field(factory=dict)


class DuplicateEntry(ValueError):
    """An id that the store holds already, or that was given twice."""


@runtime_checkable
class VectorStore(Protocol):
    """Vectors by id, found by cosine similarity. May be called concurrently: a query sees each write whole or not at all.

    The first entries set D. Every method raises ValueError, naming the entry, for a vector of another length, one that is not finite, and one
    that is zero (it has no direction); then nothing is written.
    """

    async def add(self, entries: Sequence[Entry]) -> None:
        """Adds new entries. Raises DuplicateEntry for an id that is taken, or given twice; then nothing is written."""
        ...

    async def upsert(self, entries: Sequence[Entry]) -> None:
        """Adds entries, replacing those of the same id whole. Raises DuplicateEntry for an id given twice."""
        ...

    async def query(self, queries_N_D: Embeddings, top_k: int, where: Filter | None = None) -> list[list[Match]]:
        """For each query at most `top_k` matches, best first; fewer where fewer entries pass the filter. Raises ValueError for top_k below 1."""
        ...

    async def delete(self, ids: Sequence[str]) -> int:
        """Removes entries; ids that are not there are ignored. Gives how many were removed."""
        ...

    async def count(self) -> int:
        """Entries held."""
        ...


def checked_matrix(entries: Sequence[Entry], dimensions: int | None) -> Embeddings:
    """The entries' embeddings, shape (N, D), made unit vectors. Raises ValueError and DuplicateEntry as stores promise."""
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise DuplicateEntry(f"entry {entry.id!r} was given twice")
        seen.add(entry.id)
        if entry.embedding.ndim != 1 or not len(entry.embedding):
            raise ValueError(f"entry {entry.id!r}: an embedding has shape (D,), not {entry.embedding.shape}")
        dimensions = len(entry.embedding) if dimensions is None else dimensions
        if len(entry.embedding) != dimensions:
            raise ValueError(
                f"entry {entry.id!r}: its embedding has {len(entry.embedding)} dimensions, the others have {dimensions}"
            )
        for field, value in entry.metadata.items():
            if not isinstance(value, Scalar):
                raise ValueError(
                    f"entry {entry.id!r}: metadata {field!r} is a {type(value).__name__}; it holds text, numbers and truth values"
                )
    if not entries:
        return np.empty((0, dimensions or 0), np.float32)
    return unit_rows(np.stack([entry.embedding for entry in entries]), lambda row: f"entry {entries[row].id!r}")


def checked_queries(queries_N_D: Any, top_k: int, dimensions: int | None) -> Embeddings:
    """Queries as unit vectors. Raises ValueError as stores promise."""
    queries_N_D = np.asarray(queries_N_D, dtype=np.float32)
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if queries_N_D.ndim != 2:
        raise ValueError(f"queries have shape (N, D), not {queries_N_D.shape}")
    if dimensions is not None and len(queries_N_D) and queries_N_D.shape[1] != dimensions:
        raise ValueError(f"queries have {queries_N_D.shape[1]} dimensions, the store's entries have {dimensions}")
    return unit_rows(queries_N_D, lambda row: f"query {row}")


def unit_rows(matrix_N_D: Embeddings, name: Callable[[int], str]) -> Embeddings:
    """Rows of length 1. Raises ValueError, calling row i `name(i)`, where there is no direction to keep."""
    if not matrix_N_D.size:
        return matrix_N_D
    # In float64, and scaled first: the square of a large or tiny float32 is not a float32.
    largest_N = np.abs(matrix_N_D).max(axis=1).astype(np.float64)
    bad = ~np.isfinite(largest_N) | (largest_N == 0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        what = "is zero, so it has no direction" if largest_N[row] == 0 else "is not finite"
        raise ValueError(f"{name(row)}: its embedding {what}")
    scaled_N_D = matrix_N_D / largest_N[:, None]
    unit_N_D: Embeddings = (scaled_N_D / np.linalg.norm(scaled_N_D, axis=1, keepdims=True)).astype(np.float32)
    return unit_N_D


def passes(metadata: Metadata, where: Filter) -> bool:
    """Whether an entry's metadata fulfils every condition."""
    return all(field in metadata and _fulfils(metadata[field], condition) for field, condition in where.items())


def _fulfils(value: Scalar, condition: Condition) -> bool:
    if isinstance(condition, Between):
        return _is_number(value) and condition.low <= float(value) <= condition.high
    if isinstance(condition, (tuple, list, frozenset)):
        return any(_same(value, other) for other in condition)
    return _same(value, condition)


def _is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(left: Scalar, right: Scalar) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)
