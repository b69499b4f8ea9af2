"""What every embedder and every vector store promises, as checks that any adapter can be run through, third parties' included.

    @pytest.mark.parametrize("check", conformance.STORE_CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check):
        async with open_my_store() as store:
            await check(store)

Each check wants a fresh, empty store (or any embedder) and raises NotConforming where a promise is broken.

Dimension suffixes: `N` entries or texts, `D` dimensions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
import numpy as np

from engine.conformance import NotConforming, require
from engine.retrieval.ports import Between, DuplicateEntry, Embedder, Embeddings, Entry, Filter, Match, VectorStore

# ---- stores


def _entries(number: int, dimensions: int = 8, seed: int = 0) -> list[Entry]:
    matrix_N_D = np.random.default_rng(seed).normal(size=(number, dimensions))
    return [
        Entry(
            f"e{row:03}",
            matrix_N_D[row] * (row + 1),  # of different lengths: only directions count
            f"text {row}",
            {"row": row, "even": row % 2 == 0, "kind": "abc"[row % 3], "half": row / 2},
        )
        for row in range(number)
    ]


def _by_hand(entries: Sequence[Entry], query_D: Embeddings, top_k: int) -> list[tuple[str, float]]:
    def cosine(entry: Entry) -> float:
        a, b = entry.embedding.astype(np.float64), query_D.astype(np.float64)
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    return sorted(((entry.id, cosine(entry)) for entry in entries), key=lambda pair: (-pair[1], pair[0]))[:top_k]


async def _one(store: VectorStore, query_D: Embeddings, top_k: int, where: Filter | None = None) -> list[Match]:
    (matches,) = await store.query(query_D[None], top_k, where)
    return matches


async def _ids(store: VectorStore, where: Filter) -> list[str]:
    return sorted(match.id for match in await _one(store, np.ones(8, np.float32), 100, where))


async def nearest_come_first(store: VectorStore) -> None:
    """The top k by cosine, best first, with scores, texts and metadata, for every query in order."""
    entries = _entries(30)
    await store.add(entries)
    queries_N_D = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    answers = await store.query(queries_N_D, 4)
    require(len(answers) == 5, f"5 queries gave {len(answers)} answers")
    by_id = {entry.id: entry for entry in entries}
    for query_D, matches in zip(queries_N_D, answers, strict=True):
        wanted = _by_hand(entries, query_D, 4)
        require([match.id for match in matches] == [name for name, _ in wanted], f"{matches} instead of {wanted}")
        for match, (_, score) in zip(matches, wanted, strict=True):
            require(abs(match.score - score) < 1e-5, f"a score of {match.score} where the cosine is {score}")
            entry = by_id[match.id]
            require(match.text == entry.text, f"text {match.text!r} instead of {entry.text!r}")
            require(dict(match.metadata) == dict(entry.metadata), f"metadata {match.metadata} of {entry.metadata}")


async def fewer_where_there_are_fewer(store: VectorStore) -> None:
    """An empty store answers with nothing; top_k above the number of entries gives all of them; no queries, no answers."""
    require(await store.query(np.ones((2, 8), np.float32), 3) == [[], []], "an empty store found something")
    await store.add(_entries(3))
    require(len(await _one(store, np.ones(8, np.float32), 50)) == 3, "top_k above the count must give all entries")
    require(await store.query(np.empty((0, 8), np.float32), 3) == [], "no queries gave answers")


async def filters_hold(store: VectorStore) -> None:
    """Equality, alternatives, ranges, and several conditions at once; entries without the field do not match; truth values are no numbers."""
    await store.add([*_entries(12), Entry("bare", np.ones(8))])
    cases: list[tuple[Filter, list[int]]] = [
        ({"kind": "a"}, [0, 3, 6, 9]),
        ({"kind": ("a", "b"), "even": True}, [0, 4, 6, 10]),
        ({"row": 5}, [5]),
        ({"row": [5, 7, 99]}, [5, 7]),
        ({"row": Between(3, 5)}, [3, 4, 5]),
        ({"row": Between(low=10)}, [10, 11]),
        ({"row": Between()}, [*range(12)]),
        ({"half": Between(0.5, 1.0), "even": False}, [1]),
        ({"half": 2.5}, [5]),
        ({"even": 1}, []),
        ({"row": True}, []),
        ({"row": ()}, []),
        ({"kind": "z"}, []),
        ({"nothing": 1}, []),
    ]
    for where, rows in cases:
        found = await _ids(store, where)
        require(found == [f"e{row:03}" for row in rows], f"{where} found {found}, not {rows}")
    require(len(await _ids(store, {})) == 13, "an empty filter must let all pass")


async def adding_is_whole_or_not_at_all(store: VectorStore) -> None:
    """`add` refuses ids that are taken or repeated, and then writes nothing."""
    await store.add(_entries(3))
    fresh = Entry("new", np.ones(8))
    for wrong in ([fresh, _entries(1)[0]], [fresh, Entry("new", np.ones(8), "another")]):
        try:
            await store.add(wrong)
        except DuplicateEntry as error:
            name = wrong[-1].id
            require(repr(name) in str(error), f"the error does not name {name!r}: {error}")
        else:
            raise NotConforming(f"add took {[entry.id for entry in wrong]} without an error")
        require(await store.count() == 3, "a refused add left something behind")


async def upserting_replaces_whole(store: VectorStore) -> None:
    """`upsert` replaces embedding, text and all metadata, old fields included, and adds what is new."""
    entries = _entries(4)
    await store.add(entries)
    other = Entry("e001", -entries[1].embedding, "other", {"fresh": 1})
    await store.upsert([other, Entry("e900", np.ones(8), "new")])
    require(await store.count() == 5, f"{await store.count()} entries instead of 5")
    best = (await _one(store, other.embedding, 1))[0]
    require(best.id == "e001" and best.score > 0.999, f"the new embedding is not found: {best}")
    require((best.text, dict(best.metadata)) == ("other", {"fresh": 1}), f"old text or metadata stayed: {best}")
    try:
        await store.upsert([other, other])
    except DuplicateEntry:
        pass
    else:
        raise NotConforming("upsert took one id twice")


async def deleting_forgets(store: VectorStore) -> None:
    """Deleted entries are not found; ids that are not there are ignored; an id may be added again."""
    entries = _entries(5)
    await store.add(entries)
    require(await store.delete(["e001", "e003", "never", "e001"]) == 2, "delete must count what it removed")
    require(await store.count() == 3, "count after delete")
    found = {match.id for match in await _one(store, entries[1].embedding, 10)}
    require(found == {"e000", "e002", "e004"}, f"after deleting e001 and e003, found {found}")
    await store.add([entries[1]])
    require((await _one(store, entries[1].embedding, 1))[0].id == "e001", "an entry added again is not found")
    require(await store.delete([]) == 0, "deleting nothing removed something")


async def bad_vectors_are_refused(store: VectorStore) -> None:
    """Vectors of another length, not finite or zero raise ValueError naming the entry; nothing is written. So do queries, and top_k 0."""
    await store.add(_entries(2))
    for bad in (np.ones(7), np.full(8, np.nan), np.r_[np.inf, np.ones(7)], np.zeros(8), np.ones((2, 4))):
        for write in (store.add, store.upsert):
            try:
                await write([Entry("fine", np.ones(8)), Entry("bad-one", bad)])
            except ValueError as error:
                require("bad-one" in str(error), f"the error does not name the entry: {error}")
            else:
                raise NotConforming(f"an embedding {bad} was taken")
            require(await store.count() == 2, "a refused write left something behind")
    for query_N_D, top_k in (
        (np.ones((1, 7)), 1),
        (np.full((1, 8), np.nan), 1),
        (np.zeros((1, 8)), 1),
        (np.ones((1, 8)), 0),
    ):
        try:
            await store.query(query_N_D.astype(np.float32), top_k)
        except ValueError:
            continue
        raise NotConforming(f"a query {query_N_D} with top_k {top_k} was answered")


async def extreme_lengths_keep_their_direction(store: VectorStore) -> None:
    """Embeddings whose squares overflow or vanish in float32 are found by their direction all the same."""
    await store.add([Entry("large", np.r_[3e38, np.zeros(7)]), Entry("small", np.r_[0, 1e-38, np.zeros(6)])])
    best = (await _one(store, np.r_[0.1, 1.0, np.zeros(6)].astype(np.float32), 1))[0]
    require(best.id == "small" and abs(best.score - 1 / np.hypot(0.1, 1.0)) < 1e-5, f"found {best}")


async def writers_and_readers_share(store: VectorStore) -> None:
    """Concurrent writes lose nothing, and a query sees each of them whole or not at all."""
    entries = _entries(48)
    pairs = [entries[start : start + 2] for start in range(0, 48, 2)]

    async def write(pair: list[Entry]) -> None:
        await store.upsert(pair)

    async def read() -> None:
        seen = {match.id for match in await _one(store, np.ones(8, np.float32), 100)}
        for pair in pairs:
            require(len(seen & {entry.id for entry in pair}) != 1, "a query saw half of a write")

    async with anyio.create_task_group() as group:
        for pair in pairs:
            group.start_soon(write, pair)
            group.start_soon(read)
    require(await store.count() == 48, f"{await store.count()} of 48 entries after concurrent writes")


STORE_CHECKS: tuple[Callable[[VectorStore], Awaitable[None]], ...] = (
    nearest_come_first,
    fewer_where_there_are_fewer,
    filters_hold,
    adding_is_whole_or_not_at_all,
    upserting_replaces_whole,
    deleting_forgets,
    bad_vectors_are_refused,
    extreme_lengths_keep_their_direction,
    writers_and_readers_share,
)

# ---- embedders

TEXTS = (
    "Paris is the capital of France.",
    "",
    "x",
    "Ünïcødé 日本語 🙂",
    "word " * 400,
    "Paris is the capital of France.",
)


async def embeddings_are_well_formed(embedder: Embedder) -> None:
    """Finite float32, one row for each text, `dimensions` wide, of length 1 where that is claimed; no texts, no rows."""
    embeddings_N_D = await embedder.embed(TEXTS)
    require(embeddings_N_D.dtype == np.float32, f"embeddings are {embeddings_N_D.dtype}, not float32")
    require(embeddings_N_D.shape == (len(TEXTS), embedder.dimensions), f"shape {embeddings_N_D.shape}")
    require(np.isfinite(embeddings_N_D).all(), "embeddings must be finite")
    if embedder.unit_norm:
        lengths_N = np.linalg.norm(embeddings_N_D.astype(np.float64), axis=1)
        require(np.allclose(lengths_N, 1.0, atol=1e-5), f"unit_norm is claimed, lengths are {lengths_N}")
    require((await embedder.embed([])).shape == (0, embedder.dimensions), "no texts must give shape (0, D)")


async def texts_alone_decide(embedder: Embedder) -> None:
    """The same text gives the same vector: twice in a call, in another order, alone, and concurrently with others."""
    whole_N_D = await embedder.embed(TEXTS)
    require(np.array_equal(whole_N_D[0], whole_N_D[-1]), "one text, twice in one call, gave two vectors")
    backwards_N_D = (await embedder.embed(TEXTS[::-1]))[::-1]
    require(np.allclose(whole_N_D, backwards_N_D, atol=1e-5), "another order gave other vectors")
    alone: dict[int, Embeddings] = {}

    async def one(index: int) -> None:
        alone[index] = (await embedder.embed([TEXTS[index]]))[0]

    async with anyio.create_task_group() as group:
        for index in range(len(TEXTS)):
            group.start_soon(one, index)
    for index in range(len(TEXTS)):
        require(np.allclose(whole_N_D[index], alone[index], atol=1e-5), f"text {index} alone gave another vector")


async def likeness_shows(embedder: Embedder) -> None:
    """A text is nearer to its question than to another's."""
    documents_N_D = await embedder.embed(["Berlin is the capital of Germany.", "A pound of butter and six eggs."])
    queries_N_D = await embedder.embed(["What is the capital of Germany?", "How much butter?"], purpose="query")
    scores = queries_N_D @ documents_N_D.T
    require(scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0], f"scores {scores.tolist()}")


EMBEDDER_CHECKS: tuple[Callable[[Embedder], Awaitable[None]], ...] = (
    embeddings_are_well_formed,
    texts_alone_decide,
    likeness_shows,
)
