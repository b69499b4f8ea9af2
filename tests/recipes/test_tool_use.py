"""Learning to use tools: the two recipes end to end, short; to a result at the smallest size that shows one; with one's own data, index and model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors.schedule import Schedule
from engine.data import DataError
from engine.data.questions import Passage
from engine.retrieval import HashingEmbedder, InMemoryVectorStore, SearchIndex
from envs.arithmetic import Difficulty
from recipes import cli, retrieval, runs
from recipes.ports import Ports
from recipes.tool_use import calculator, search

pytestmark = pytest.mark.local
TINY: dict[str, Any] = {
    "steps": 2,
    "schedule": Schedule(groups_per_step=2),
    "group_size": 4,
    "warm_up": 6,
    "evaluate_every": 1,
    "evaluation_problems": 4,
    "checkpoint_every": 1,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def calculate(**options: Any) -> Any:
    pytest.importorskip("torch")
    return anyio.run(calculator.run, calculator.Config(**{**TINY, **options}))


def look_up(ports: Ports | None = None, **options: Any) -> Any:
    pytest.importorskip("torch")
    config = search.Config(**{**TINY, **options})
    return anyio.run(search.run, config, ports) if ports else anyio.run(search.run, config)


def test_a_run_with_a_calculator_leaves_what_was_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = calculate(run_dir=tmp_path / "run")
    assert result.ending == "complete"
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    for name in ("correct", "answered", "format", "tool_calls", "tool_errors", "tool_unparsed", "tool_timeouts"):
        assert f"env/all/{name}" in rows[0]
    printed = capsys.readouterr().out
    for expected in ("tools     ", "right     ", "before (step 1)", "report.html", "What is "):
        assert expected in printed
    again = calculate(run_dir=tmp_path / "run", resume=True)
    assert (again.version, len(lines(tmp_path / "run" / "metrics.jsonl"))) == (2, 2)


@pytest.mark.slow
def test_the_calculator_is_used_more_often_and_more_is_right(tmp_path: Path) -> None:
    """The smallest size that shows it: sums of single digits, eight steps. The whole job's figures are in docs/tools.md."""
    result = calculate(
        run_dir=tmp_path,
        steps=8,
        warm_up=100,
        schedule=Schedule(groups_per_step=12),
        group_size=8,
        difficulty=Difficulty(digits=1),
        evaluate_every=8,
        evaluation_problems=64,
    )
    first, last = result.rows[0], result.rows[-1]
    before, after = (each.metrics["all/reward/total"] for each in result.evaluations)
    assert last["env/all/tool_calls"] > first["env/all/tool_calls"] + 0.3
    assert after > before + 0.2


def test_searching_the_invented_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = look_up(run_dir=tmp_path / "run")
    assert result.ending == "complete"
    assert {"env/all/exact_match", "env/all/f1", "env/all/tool_calls"} <= result.rows[0].keys()
    assert "264 passages of an invented world" in capsys.readouterr().out
    # Those asked about in the evaluation are nobody's that was trained on.
    task = search.load_task(search.Config(), Ports().load_rows)
    trained, fixed = ({question.text for question in some} for some in (task.questions, task.fixed))
    assert len(trained) == 216
    assert len(fixed) == 24
    assert not trained & fixed


def test_the_index_may_be_anybodys(tmp_path: Path) -> None:
    asked: list[str] = []

    class Listening(HashingEmbedder):
        async def embed(self, texts: Any, *, purpose: Any = "document") -> Any:
            asked.extend(texts if purpose == "query" else ())
            return await super().embed(texts, purpose=purpose)

    @asynccontextmanager
    async def open_embedder(config: Any) -> AsyncIterator[Any]:
        yield Listening()

    look_up(Ports(open_embedder=open_embedder), run_dir=tmp_path)
    assert any("works at" in text for text in asked)


def hotpot(path: Path, count: int = 12) -> Path:
    rows = [
        {
            "question": f"Where is firm {n}?",
            "answer": f"Town {n}",
            "context": {"title": [f"Firm {n}", "Other"], "sentences": [[f"It is in Town {n}."], ["Nothing."]]},
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_one_s_own_questions_bring_their_passages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = hotpot(tmp_path / "mine.jsonl")
    result = look_up(run_dir=tmp_path / "run", data=data, held_out=4, warm_up=0, instructed=True, metric="f1")
    assert result.ending == "complete"
    assert "mine.jsonl, its own" in capsys.readouterr().out
    samples = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8")
    assert "Where is firm" in samples


def test_a_corpus_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "nq.jsonl"
    data.write_text("".join(json.dumps({"question": f"q{n}?", "answer": ["a"]}) + "\n" for n in range(8)), "utf-8")
    config = search.Config(data=data, held_out=2)
    with pytest.raises(DataError, match=r"nq\.jsonl.*bring no passages with them: --corpus says what is searched"):
        search.load_task(config, Ports().load_rows)
    corpus = tmp_path / "wiki.jsonl"
    corpus.write_text("".join(json.dumps({"id": n, "contents": f'"T{n}"\ntext'}) + "\n" for n in range(5)), "utf-8")
    task = search.load_task(attrs.evolve(config, corpus=str(corpus), corpus_limit=3), Ports().load_rows)
    assert [passage.title for passage in task.passages] == ["T0", "T1", "T2"]
    with pytest.raises(DataError, match="--held-out 0 leaves no question"):
        search.load_task(attrs.evolve(config, held_out=0), Ports().load_rows)


# ---- an index that is kept


def test_a_kept_index_is_not_made_again_and_no_other_s_is_taken(tmp_path: Path) -> None:
    config = retrieval.RetrievalConfig(directory=tmp_path / "index")
    passages = [Passage("The Seine flows.", "River"), Passage("Rome.", id="r")]

    async def use(config: retrieval.RetrievalConfig, passages: list[Passage], corpus: str) -> list[Any]:
        async with retrieval.open_embedder(config) as embedder, retrieval.open_store(config) as store:
            assert isinstance(store, InMemoryVectorStore)
            before = await store.count()
            index = SearchIndex(embedder, store)
            await retrieval.fill(config, index, passages, corpus)
            (matches,) = await index.search(["the Seine flows"], 1)
            return [before, matches[0].id, dict(matches[0].metadata), matches[0].text]

    assert anyio.run(use, config, passages, "mine") == [0, "0", {"title": "River"}, "The Seine flows."]
    assert anyio.run(use, config, passages, "mine")[0] == 2
    for other, some, corpus, said in (
        (config, passages, "yours", r"an index with corpus 'mine', not 'yours'"),
        (config, passages[:1], "mine", "passages 2, not 1"),
        (attrs.evolve(config, dimensions=64), passages, "mine", "dimensions 512, not 64"),
        (attrs.evolve(config, query_prefix="query: "), passages, "mine", "query_prefix None, not 'query: '"),
    ):
        with pytest.raises(ValueError, match=said):
            anyio.run(use, other, some, corpus)


def test_the_embedders_that_flags_name(tmp_path: Path) -> None:
    async def kind(config: retrieval.RetrievalConfig) -> str:
        async with retrieval.open_embedder(config) as embedder:
            return type(embedder).__name__

    assert anyio.run(kind, retrieval.RetrievalConfig()) == "HashingEmbedder"
    assert anyio.run(kind, retrieval.RetrievalConfig(embedder="http")) == "HttpEmbedder"
    from engine.backends.errors import BackendError

    with pytest.raises(BackendError, match=r"no encoder '\./nowhere'"):
        anyio.run(kind, retrieval.RetrievalConfig(embedder="local", model="./nowhere"))


# ---- the command line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--metric", "bleu"], "--metric: must be one of exact_match, f1, contains, not 'bleu'"),
        (["--top-k", "0"], "--top-k: must be at least 1, not 0"),
        (["--retrieval.store", "faiss"], "--retrieval.store: must be one of memory, chroma, not 'faiss'"),
        (["--data", "a.jsonl", "--dataset", "nq"], "--dataset: cannot be given beside --data"),
        (["--topk", "3"], "did you mean --top-k?"),
    ],
)
def test_wrong_flags_are_said(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(search.run, search.Config, name="search", args=args)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_defaults_follow_the_model() -> None:
    config = runs.defaults(search.Config, ["--model", "Qwen/Qwen3-4B"], by_model=search.FOR_REAL_MODELS)
    assert (config.model, config.renderer, config.warm_up, config.instructed) == ("Qwen/Qwen3-4B", None, 0, True)
    tiny = runs.defaults(calculator.Config, [], by_model=calculator.FOR_REAL_MODELS)
    assert (tiny.model, tiny.renderer) == ("tiny", "qwen3_instruct")
    assert cli.structure(cli.unstructure(config), search.Config) == config


@pytest.mark.parametrize("name", ["tool_use", "tool_use.search"])
def test_they_run_inside_other_programs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a simulated model, and quietly."""
    from recipes import run

    config = {**TINY, "schedule": {"groups_per_step": 2}, "steps": 1, "warm_up": 0, "run_dir": tmp_path / "run"}

    async def program() -> Any:
        return await run(name, config, manifest="test")

    assert anyio.run(program).ending == "complete"
    assert capsys.readouterr().out == ""
