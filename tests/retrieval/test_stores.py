"""Vector stores: one conformance suite for all; the exact one beside a second implementation; what outlives the process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval import (
    Between,
    Document,
    Entry,
    HashingEmbedder,
    InMemoryVectorStore,
    SearchIndex,
    VectorStore,
    conformance,
    open_chroma,
)
from engine.retrieval.conformance import NotConforming
from engine.retrieval.memory import INLINE

with_chroma = pytest.mark.skipif(
    importlib.util.find_spec("chromadb") is None, reason="chromadb is heavy: pip install 'callsheet[search]'"
)


@asynccontextmanager
async def in_memory() -> AsyncIterator[VectorStore]:
    yield InMemoryVectorStore()


@asynccontextmanager
async def persistent() -> AsyncIterator[VectorStore]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        async with open_chroma(Path(directory) / "vectors") as store:
            yield store


OPENERS = [
    pytest.param(in_memory, id="memory"),
    pytest.param(open_chroma, id="chroma", marks=with_chroma),
    pytest.param(persistent, id="chroma_directory", marks=with_chroma),
]


@pytest.mark.anyio
@pytest.mark.parametrize("check", conformance.STORE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_conformance(opener, check) -> None:
    async with opener() as store:
        await check(store)


class Broken(InMemoryVectorStore):
    """Wrong in one way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    async def query(self, queries_N_D, top_k, where=None):
        if self.way == "where":
            where = None
        found = await super().query(queries_N_D, top_k, where)
        return [matches[::-1] for matches in found] if self.way == "order" else found

    async def add(self, entries):
        if self.way == "add":
            return await self.upsert(list({entry.id: entry for entry in entries}.values()))
        return await super().add(entries)

    async def delete(self, ids):
        return len(set(ids)) if self.way == "delete" else await super().delete(ids)

    async def upsert(self, entries):
        if self.way == "halves":
            for entry in entries:
                await super().upsert([entry])
                await anyio.lowlevel.checkpoint()
        else:
            await super().upsert(entries)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["where", "order", "add", "delete", "halves"])
async def test_the_suite_notices(way: str) -> None:
    broken = 0
    for check in conformance.STORE_CHECKS:
        try:
            await check(Broken(way))
        except NotConforming:
            broken += 1
    assert broken >= 1


numbers = st.integers(-3, 3)
metadata = st.fixed_dictionaries({}, optional={"n": st.integers(0, 3), "s": st.sampled_from("ab"), "b": st.booleans()})
wheres = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2) | st.just(Between(1, 2)),
        "s": st.sampled_from("abc"),
        "b": st.booleans(),
    },
)
vectors = st.lists(numbers, min_size=3, max_size=3).filter(any)


@settings(deadline=None, max_examples=120)
@given(
    writes=st.lists(st.tuples(st.sampled_from("abcdef"), vectors, metadata) | st.sampled_from("abcdef"), max_size=12),
    query=vectors,
    top_k=st.integers(1, 7),
    where=wheres,
)
def test_memory_equals_a_plain_loop(writes, query, top_k, where) -> None:
    """Any history of upserts and deletes, then a filtered query, as a dictionary and a loop would have it."""
    store, plain = InMemoryVectorStore(), {}

    async def play():
        for write in writes:
            if isinstance(write, str):
                assert await store.delete([write]) == (plain.pop(write, None) is not None)
            else:
                name, vector, fields = write
                await store.upsert([Entry(name, vector, name.upper(), fields)])
                plain[name] = (np.array(vector) / np.linalg.norm(vector), fields)
        return (await store.query(np.array([query], np.float32), top_k, where))[0]

    def fits(fields):
        for field, condition in where.items():
            if field not in fields:
                return False
            value = fields[field]
            if isinstance(condition, Between):
                if not condition.low <= value <= condition.high:
                    return False
            elif value not in condition if isinstance(condition, list) else value != condition:
                return False
        return True

    found = anyio.run(play)
    unit = np.array(query) / np.linalg.norm(query)
    scores = {name: float(vector @ unit) for name, (vector, fields) in plain.items() if fits(fields)}
    assert len(found) == min(top_k, len(scores))
    assert [match.score for match in found] == pytest.approx(sorted(scores.values(), reverse=True)[:top_k], abs=1e-6)
    for match in found:
        assert match.score == pytest.approx(scores[match.id], abs=1e-6)
        assert match.text == match.id.upper()
        assert match.metadata == plain[match.id][1]


@pytest.mark.anyio
async def test_ties_do_not_depend_on_the_order_of_writing() -> None:
    entries = [Entry(name, [1.0, 0.0]) for name in "dacb"]
    for order in (entries, entries[::-1]):
        store = InMemoryVectorStore()
        await store.add(order)
        ((first, second),) = await store.query(np.array([[1.0, 0.0]]), 2)
        assert (first.id, second.id) == ("a", "b")


@pytest.mark.anyio
async def test_large_stores_work_in_threads() -> None:
    """Above INLINE: the same answers as a plain product."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3000, 64)).astype(np.float32)
    store = InMemoryVectorStore()
    for start in range(0, 3000, 700):
        await store.add([Entry(str(row), matrix[row]) for row in range(start, min(start + 700, 3000))])
    queries = rng.normal(size=(70, 64)).astype(np.float32)
    assert matrix.size * len(queries) > INLINE
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    best = (queries @ unit.T).argmax(axis=1)
    found = await store.query(queries, 1)
    assert [int(matches[0].id) for matches in found] == best.tolist()
    assert await store.delete([str(row) for row in range(0, 3000, 2)]) == 1500
    assert all(int(matches[0].id) % 2 for matches in await store.query(queries, 1))


@pytest.mark.anyio
async def test_saved_and_loaded(tmp_path: Path) -> None:
    store = InMemoryVectorStore()
    await store.add([Entry("a", [1, 0], "ä\n☃", {"n": 1, "b": True}), Entry("b", [0, 1])])
    await store.save(tmp_path / "vectors")
    again = await InMemoryVectorStore.load(tmp_path / "vectors")
    query = np.array([[0.9, 0.1]])
    assert await again.query(query, 5) == await store.query(query, 5)
    await again.add([Entry("c", [1, 1])])
    assert (await again.count(), await store.count()) == (3, 2)
    with pytest.raises(FileExistsError):
        await store.save(tmp_path / "vectors")


@pytest.mark.anyio
@pytest.mark.parametrize("harm", ["missing", "format", "entries", "embeddings", "count"])
async def test_a_damaged_store_is_named(tmp_path: Path, harm: str) -> None:
    directory = tmp_path / "vectors"
    if harm != "missing":
        store = InMemoryVectorStore()
        await store.add([Entry("a", [1, 0]), Entry("b", [0, 1])])
        await store.save(directory)
    if harm == "format":
        (directory / "format.json").write_text('{"format": "other"}')
    elif harm == "entries":
        (directory / "entries.jsonl").write_text('{"id": "a"')
    elif harm == "embeddings":
        (directory / "embeddings.npy").write_bytes(b"")
    elif harm == "count":
        (directory / "entries.jsonl").write_text("")
    with pytest.raises(ValueError, match="vectors holds no vector store"):
        await InMemoryVectorStore.load(directory)


@with_chroma
@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_chroma_outlives_its_client(tmp_path: Path) -> None:
    async with open_chroma(tmp_path) as store:
        await store.add([Entry("a", [1, 0], "A", {"n": 1}), Entry("b", [0, 1])])
    async with open_chroma(tmp_path) as store:
        assert await store.count() == 2
        with pytest.raises(ValueError, match="3 dimensions"):
            await store.add([Entry("c", [1, 1, 1])])
        ((match,),) = await store.query(np.array([[1.0, 0.1]]), 1)
        assert (match.id, match.text, dict(match.metadata)) == ("a", "A", {"n": 1})


@pytest.mark.anyio
async def test_without_chroma_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chromadb", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'callsheet\[search\]'"):
        async with open_chroma():
            pass


@pytest.mark.anyio
async def test_an_index_finds_documents() -> None:
    index = SearchIndex(HashingEmbedder(), InMemoryVectorStore())
    added = await index.add(
        [
            Document("1", "The Seine flows through Paris."),
            Document("2", "butter", {"kind": "food"}, indexed="cake recipe"),
        ],
        batch=1,
    )
    assert added == 2
    (river, cake) = await index.search(["Where does the Seine flow?", "a recipe for cake"], 1)
    assert (river[0].id, cake[0].id, cake[0].text) == ("1", "2", "butter")
    ((only,),) = await index.search(["the Seine"], 5, {"kind": "food"})
    assert only.id == "2"
