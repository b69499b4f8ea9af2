"""Reinforcement learning of search: questions of several hops over a corpus, in the manner of Search-R1 (arXiv:2503.09516).

    python -m recipes.tool_use.search                                                   # two minutes on two CPU cores, in an invented world
    python -m recipes.tool_use.search --model Qwen/Qwen3-4B-Instruct-2507 --dataset hotpotqa --limit 20000 --lora-rank 32     # its own passages as the corpus
    python -m recipes.tool_use.search --model ... --dataset nq_hotpotqa --corpus wiki18.jsonl --retrieval.embedder local --retrieval.store chroma \\
        --retrieval.directory wiki18-e5 --retrieval.query-prefix 'query: ' --retrieval.document-prefix 'passage: '

Without `--model`, a tiny Llama is made and warmed up on the conversations of a pupil who can look things up but has become lazy: most answers are guessed, or given
after half of the way. People asked about in the evaluation are none of those trained on, so knowing facts by heart does not help. What this recipe leaves
out: thinking between the searches (a thinking model does it by itself), and reranking.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, OpenedModel
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import ProblemConfig, reinforce
from recipes.retrieval import RetrievalConfig, fill
from recipes.row_data import RowsConfig, load_split
from recipes.terminal import say

if TYPE_CHECKING:
    from actors import RunResult, StopRequest
    from engine.data import Examples, LoadRows, Passage, Question
    from engine.rendering import Renderer
    from engine.retrieval import SearchIndex
    from envs.tools import Toolbox
    from envs.tools.search import SearchGroups

RENDERER = "qwen3_instruct"
"""The tiny model's format: a family that writes calls as JSON."""
CONTEXT = 256
"""Tokens that the tiny model can see; an episode of four turns takes about 120."""


@attrs.frozen(kw_only=True)
class Config(ProblemConfig, RowsConfig):
    """Questions that take several searches. Without flags: a tiny model in an invented world, in two minutes on two CPU cores."""

    renderer: str | None = RENDERER
    """Chat format, by name, one that has tools; None: the model's own."""
    corpus: str | None = None
    """What is searched: a local file, or a data set of the hub as owner/name, of passages; None: the passages that come with the questions."""
    corpus_limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Passages to take at most, the first ones."""
    retrieval: RetrievalConfig = attrs.field(factory=RetrievalConfig)
    """How passages are found."""
    top_k: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    """Passages that a search returns."""
    passage_characters: int = attrs.field(default=1200, validator=attrs.validators.ge(1))
    """Longest passage, in characters; the rest is cut off."""
    metric: Literal["exact_match", "f1", "contains"] = "exact_match"
    """What the reward is. contains rewards an answer that lists everything."""
    max_turns: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Answers of an episode; calls in the last one are not made."""
    instructed: bool = False
    """Say in a system message how to search and how to answer."""
    steps: int = attrs.field(default=30, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=16))
    """Pace: synchronous by default."""
    max_tokens: int = attrs.field(default=24, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""
    evaluate_every: int = attrs.field(default=10, validator=attrs.validators.ge(1))
    """Steps between evaluations on fixed problems."""
    warm_up: int = attrs.field(default=300, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""


FOR_REAL_MODELS: dict[str, Any] = {
    "renderer": None,
    "steps": 100,
    "schedule": Schedule(groups_per_step=16),
    "group_size": 8,
    "learning_rate": LearningRateConfig(peak=5e-5, warmup_steps=5),
    "top_k": 3,
    "max_turns": 5,
    "instructed": True,
    "max_tokens": 512,
    "lora_rank": 32,
    "threads": None,
    "warm_up": 0,
    "evaluate_every": 20,
}
"""The paper's: three passages a search, exact match as the reward."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.retrieval import SearchIndex
    from engine.runtime.offload import offload
    from envs.tools import Toolbox
    from envs.tools.search import search_tool
    from recipes.summary import tools_learnt

    directory = runs.begin(config, "search")
    task = await offload(load_task, config, ports.load_rows)
    stop, result = StopRequest(), None
    async with ports.open_embedder(config.retrieval) as embedder, ports.open_store(config.retrieval) as store:
        index = SearchIndex(embedder, store)
        await fill(config.retrieval, index, task.passages, task.corpus)
        say(f"search: {await store.count()} passages of {task.corpus}")
        toolbox = Toolbox([search_tool(index, top_k=config.top_k, passage_characters=config.passage_characters)])
        async with (
            cli.stop_on_interrupt(stop),
            _open(config, directory, ports, stop, index, toolbox, task.questions) as opened,
        ):
            groups = _groups(config, opened, task.questions, toolbox)
            fixed = attrs.evolve(groups, questions=task.fixed, group_size=1)
            if not stop.requested:
                result = await reinforce(config, "search", directory, opened, groups, {"fixed problems": fixed}, stop)
    runs.tell(directory, result, "recipes.tool_use.search", learnt=tools_learnt)
    return result


@attrs.frozen
class Task:
    """What is asked, and where the answers are."""

    questions: Examples[Question]
    fixed: Examples[Question]
    """Those of the evaluation."""
    passages: Sequence[Passage]
    corpus: str
    """What people know the passages by."""


def load_task(config: Config, load: LoadRows) -> Task:
    """Questions and corpus, by the flags. Blocks. Raises DataError where there is nothing to search."""
    from engine.data import DataError, read_passages, read_questions, rows_of
    from envs.tools.invented_facts import World

    world = World.invented(config.seed)
    invented = config.data is None and config.dataset is None
    made = rows_of(
        [{"question": each.question.text, "answers": list(each.question.answers)} for each in world.people], "invented"
    )
    questions, held_out = load_split(config, load, made, partial(read_questions, on_bad_row=config.on_bad_row))
    if held_out is None:
        raise DataError("--held-out 0 leaves no question to evaluate on")
    fixed = held_out.take(config.evaluation_problems)
    if config.corpus is not None:
        passages = [*read_passages(load(config.corpus, limit=config.corpus_limit), on_bad_row=config.on_bad_row)]
        return Task(questions, fixed, passages, config.corpus)
    if invented:
        return Task(questions, fixed, world.passages, "an invented world")
    found = {
        (each.title, each.text): each for some in (questions, fixed) for question in some for each in question.passages
    }
    if not found:
        raise DataError(f"{questions.name}: its questions bring no passages with them: --corpus says what is searched")
    return Task(questions, fixed, [*found.values()][: config.corpus_limit], f"{questions.name}, its own")


def _groups(config: Config, opened: OpenedModel, questions: Examples[Question], toolbox: Toolbox) -> SearchGroups:
    from envs.tools import ToolLimits
    from envs.tools.search import INSTRUCTION, SearchGroups

    return SearchGroups(
        opened.renderer,
        questions,
        toolbox,
        config.group_size,
        config.metric,
        limits=ToolLimits(max_turns=config.max_turns, calls_per_answer=3),
        instruction=INSTRUCTION if config.instructed else None,
    )


@asynccontextmanager
async def _open(
    config: Config,
    directory: Path,
    ports: Ports,
    stop: StopRequest,
    index: SearchIndex,
    toolbox: Toolbox,
    questions: Examples[Question],
) -> AsyncIterator[OpenedModel]:
    """The model that RL starts from."""
    if config.model != TINY:
        async with ports.open_model(config, directory, seed=config.seed) as opened:
            yield opened
        return
    from envs.tools.invented_facts import World
    from recipes.tool_use.lazy_searcher import LazySearcher
    from recipes.warm_up import BATCH, WorkedConversations, open_warmed_up, tiny_model_for

    everybody = await LazySearcher.with_results(World.invented(config.seed).people, index, config.top_k)
    make_tiny = tiny_model_for(
        config.renderer or RENDERER, everybody.everything(), tools=toolbox.specs, vocabulary=1024, context=CONTEXT
    )
    known = {question.text for question in questions}
    people = [person for person in everybody.people if person.question.text in known] or everybody.people
    pupil = attrs.evolve(everybody, people=people, diligent=config.warm_up * BATCH * 2 // 3, seed=config.seed)

    def lazy_pupil(renderer: Renderer) -> WorkedConversations:
        return WorkedConversations(renderer, pupil, config.warm_up, tools=toolbox.specs)

    async with open_warmed_up(config, directory, ports, stop, lazy_pupil, make_tiny=make_tiny) as opened:
        yield opened


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
