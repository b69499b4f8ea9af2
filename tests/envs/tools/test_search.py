"""Answers in words; questions that take several searches; the invented world."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.errors import TransientError
from engine.data import Question
from engine.rendering import ToolCallPart, assistant
from engine.retrieval import Document, HashingEmbedder, InMemoryVectorStore, Match, SearchIndex
from engine.runtime.simulation import simulate
from engine.training.assembly import assemble
from envs.rollout import play_group
from envs.tools import Toolbox, ToolLimits, ToolUnavailable
from envs.tools.answers_in_words import contains, exact_match, f1, final_answer, normalised
from envs.tools.invented_facts import World, is_in, works_at
from envs.tools.search import SearchGroups, as_text, search_tool
from tests.envs.tools.agents import SETTINGS, Script, renderer_of

# ---- answers in words


@pytest.mark.parametrize(
    ("answer", "references", "exact", "score"),
    [
        ("The Seine.", ["seine"], 1, 1),
        ("  the   SEINE ", ["Seine"], 1, 1),
        ("Ａnn", ["ann"], 1, 1),  # full-width letters
        ("river Seine", ["Seine"], 0, 2 / 3),
        ("Seine, Rhine", ["the Rhine river", "Elbe"], 0, 0.5),
        ("Paul", ["Ann"], 0, 0),
        ("yes", ["yes"], 1, 1),
        ("yes it is", ["yes"], 0, 0),
        ("no", ["yes no"], 0, 0),
        ("", ["the"], 1, 1),
        ("", ["Ann"], 0, 0),
        ("x", [], 0, 0),
        ("b b a1", ["a1 b"], 0, 0.8),
        ("theatre", ["atre"], 0, 0),
        ("U.S.", ["us"], 1, 1),
    ],
)
def test_exact_match_and_f1(answer: str, references: list[str], exact: float, score: float) -> None:
    assert exact_match(answer, references) == exact
    assert f1(answer, references) == pytest.approx(score)


def test_contains_wants_whole_words() -> None:
    assert contains("It is the Seine, I think", ["Seine"]) == 1
    assert contains("insane", ["sane"]) == 0
    assert contains("anything", ["the"]) == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Seine", "Seine"),
        ("I think <answer> Seine </answer>", "Seine"),
        ("<answer>a</answer> no, <ANSWER>b\nc</answer>.", "b\nc"),
        ("<answer>never ends", "<answer>never ends"),
        ("", ""),
        ("x" * 10**6 + "<answer>Seine</answer>", "Seine"),
    ],
    ids=["all", "marked", "last", "open", "nothing", "long"],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


words = st.lists(st.sampled_from(["a", "red", "fox", "the", "ran"]), max_size=5).map(" ".join)


@given(words, words)
def test_f1_is_symmetric_and_1_only_for_the_same_words(one: str, other: str) -> None:
    assert f1(one, [other]) == pytest.approx(f1(other, [one]))
    same = Counter(normalised(one).split()) == Counter(normalised(other).split())
    assert math.isclose(f1(one, [other]), 1.0) == same
    assert exact_match(one, [one]) == f1(one, [one]) == 1.0
    assert exact_match(one, [other]) <= f1(one, [other])


# ---- the search tool


async def index_of(*texts: str) -> SearchIndex:
    index = SearchIndex(HashingEmbedder(), InMemoryVectorStore())
    await index.add([Document(str(number), text) for number, text in enumerate(texts)])
    return index


def search(index: SearchIndex, *queries: Any, **options: Any) -> list[tuple[Any, str]]:
    box = Toolbox([search_tool(index, **options)])
    calls = [ToolCallPart("search", {"query": query}) for query in queries]
    return [(outcome.error, outcome.text) for outcome in anyio.run(box.run, calls)]


def test_what_a_search_says() -> None:
    index = anyio.run(index_of, "The Seine flows through Paris.", "Rome is in Italy.", "x" * 30)
    assert search(index, "the Seine", "Italy", " ", top_k=1, passage_characters=20) == [
        (None, "[1] The Seine flows thro…"),
        (None, "[1] Rome is in Italy."),
        ("raised", "Error: the query is empty"),
    ]
    assert search(anyio.run(index_of), "anything") == [(None, "Nothing was found.")]
    assert as_text([Match("1", 0.5, "text", {"title": "Title"})], 100) == "[1] Title: text"
    assert search_tool(index).spec.parameters["required"] == ["query"]
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        search_tool(index, top_k=0)


def test_an_index_that_is_gone_is_nobodys_answer() -> None:
    class Gone(HashingEmbedder):
        async def embed(self, texts: Any, *, purpose: Any = "document") -> Any:
            raise TransientError("the server is down")

    with pytest.raises(ToolUnavailable, match="search: the server is down"):
        search(SearchIndex(Gone(), InMemoryVectorStore()), "anything")


# ---- episodes

renderer = renderer_of("qwen3_instruct")
PASSAGES = ("Ada Kern works at Zorvex.", "Zorvex is in Lund.", "Bea Orr works at Velux.")


def calling(query: str) -> Any:
    return assistant("", tool_calls=[ToolCallPart("search", {"query": query})])


def play(script: Script, metric: Any = "exact_match", **options: Any) -> Any:
    async def program() -> Any:
        box = Toolbox([search_tool(await index_of(*PASSAGES), top_k=1)])
        groups = SearchGroups(
            renderer,
            [Question("Where?", ("Lund",), tags=("bridge", "very hard"))],
            box,
            1,
            metric,
            instruction=None,
            **options,
        )
        return await play_group(groups[0], script, SETTINGS, 0)

    return simulate(program).unwrap()


def test_two_hops_are_one_datum_in_which_nothing_retrieved_is_trained() -> None:
    script = Script(renderer, calling("Ada Kern works at"), calling("Zorvex is in"), "<answer>Lund</answer>")
    group = play(script)
    (trajectory,) = group.trajectories
    assert (trajectory.reward, group.tags) == (1.0, ("search", "bridge", "very_hard"))
    assert (trajectory.turns[-1].metrics["f1"], trajectory.turns[-1].metrics["tool_calls"]) == (1.0, 2.0)
    (datum,) = assemble(group, np.array([1.0]))
    mask = datum.loss_inputs["mask"] > 0
    targets = datum.loss_inputs["target_tokens"]
    # The paper's loss masking: trained is what the policy wrote, and nothing of what the searches found.
    assert np.array_equal(targets[mask], np.concatenate(script.tokens))
    trained, observed = (renderer.vocabulary.decode(targets[some].tolist()) for some in (mask, ~mask))
    for passage in PASSAGES[:2]:
        assert passage in observed
        assert passage not in trained
    assert not datum.loss_inputs["advantages"][~mask].any()


@pytest.mark.parametrize(
    ("metric", "answer", "reward"),
    [("exact_match", "in Lund", 0.0), ("f1", "in Lund", 2 / 3), ("contains", "in Lund", 1.0), ("f1", "no idea", 0.0)],
)
def test_rewards(metric: Any, answer: str, reward: float) -> None:
    (trajectory,) = play(Script(renderer, answer), metric).trajectories
    assert trajectory.reward == pytest.approx(reward)
    assert trajectory.turns[0].metrics["exact_match"] == 0.0
    assert trajectory.turns[0].logs["reference"] == "Lund"


def test_searching_for_ever_earns_nothing() -> None:
    (trajectory,) = play(Script(renderer, *[calling("Lund")] * 3), limits=ToolLimits(max_turns=3)).trajectories
    assert (trajectory.reward, trajectory.turns[-1].metrics["answered"]) == (0.0, 0.0)


# ---- the invented world


def test_the_invented_world_is_consistent() -> None:
    world = World.invented(3, 200)
    assert world == World.invented(3, 200) != World.invented(4, 200)
    assert len({person.name for person in world.people}) == 200
    texts = [passage.text for passage in world.passages]
    assert len(set(texts)) == len(texts)
    for person in world.people[:20]:
        assert works_at(person.name, person.firm) in texts
        assert is_in(person.firm, person.town) in texts
        assert person.question.answers == (person.town,)
    with pytest.raises(ValueError, match="1 to 576 people, not 577"):
        World.invented(0, 577)


def test_good_queries_find_their_facts() -> None:
    world = World.invented(0, 240)

    async def program() -> Any:
        index = await index_of(*[passage.text for passage in world.passages])
        queries = [query for person in world.people for query in (works_at(person.name), is_in(person.firm))]
        return await index.search(queries, 1)

    found = [matches[0].text for matches in anyio.run(program)]
    wanted = [fact for each in world.people for fact in (works_at(each.name, each.firm), is_in(each.firm, each.town))]
    assert np.mean([one == other for one, other in zip(found, wanted, strict=True)]) > 0.97
