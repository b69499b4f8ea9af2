"""Reasoning-gym's tasks as an environment: the question, an answer, the task's own score."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import attrs

from engine.backends.values import Completion
from engine.rendering import Message, Renderer, system, user
from engine.runtime.jobs import BudgetExceeded, JobError, JobFailed, PoolClosed
from engine.runtime.processes import WorkerPool
from engine.runtime.seeds import derive_seed
from engine.training.trajectories import TrajectoryGroup
from envs.contracts import Env, GroupBuilder, Step
from envs.grading.extraction import extract
from envs.grading.grade import Failure, Grade
from envs.problem import ProblemEnv
from envs.reasoning_tasks.curriculum import Curriculum, CurriculumConfig
from envs.reasoning_tasks.source import ProblemSource
from envs.reasoning_tasks.work import Description, Item, Variant, describe, require_reasoning_gym, score

PRELOAD = ("envs.reasoning_tasks.warm",)
INSTRUCTION = "\n\nPut your final answer between <answer> and </answer>."
LONGEST_ANSWER = 20_000
"""Characters of an answer that is scored, from its end."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


@attrs.frozen
class ReasoningForm:
    """How problems are asked, and in which form an answer is wanted."""

    instruction: str = INSTRUCTION
    """What is said behind each question."""
    system: str | None = None
    """A message before it; None: none."""
    tags: bool = True
    """The answer stands between <answer> and </answer>; otherwise it is the whole text, or what is boxed."""
    format_penalty: float = attrs.field(default=0.1, validator=attrs.validators.ge(0))
    """Taken from the reward of an answer that was cut off, or has no tags where it should."""
    partial_credit: bool = True
    """Scores between 0 and 1 count as they are; otherwise only a whole success does."""
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Longest answer; None: the rollout's own limit."""


@attrs.frozen
class Scorer:
    """The tasks' own scorers, in worker processes."""

    pool: WorkerPool
    budget: float = 2.0
    """Seconds that scoring one answer may take."""

    async def grade(self, variant: Variant, item: Item, answer: str) -> Grade:
        """An answer whose scoring takes longer than its budget, or fails, is wrong, and says so. Raises PoolClosed."""
        try:
            given, how = await self.pool.run(score, variant, item.entry, answer[-LONGEST_ANSWER:], budget=self.budget)
        except PoolClosed:
            raise
        except JobError as error:
            return Grade(0.0, f"counts as wrong: {_short(error)}", failure=_failure(error))
        return Grade(given, how)


def _failure(error: JobError) -> Failure:
    return "budget" if isinstance(error, BudgetExceeded) else "error" if isinstance(error, JobFailed) else "died"


def _short(error: JobError) -> str:
    return f"the scorer raised {error.kind}: {error.message[:200]}" if isinstance(error, JobFailed) else str(error)


class ReasoningEnv(ProblemEnv):
    """One attempt at a problem. Metrics: `correct` (the score), `format`, `grading_failed`, `level`."""

    def __init__(self, renderer: Renderer, variant: Variant, item: Item, scorer: Scorer, form: ReasoningForm) -> None:
        super().__init__(renderer)
        self.item = item
        self._variant = variant
        self._scorer = scorer
        self._form = form
        self.format_penalty = form.format_penalty
        self.max_tokens = form.max_tokens

    def question(self) -> str:
        """The problem, with the instruction behind it."""
        return self.item.question + self._form.instruction

    def messages(self) -> Sequence[Message]:
        """System message and question."""
        shown = [] if self._form.system is None else [system(self._form.system)]
        return [*shown, user(self.question())]

    def reference(self) -> str | None:
        """A right answer, where the task knows one."""
        return self.item.answer

    def well_formed(self, answer: str) -> bool:
        """Between tags, where that is wanted."""
        return not self._form.tags or final_answer(answer, tags=True) is not None

    async def grade(self, answer: str) -> Grade:
        """Scores the answer with the task's own scorer."""
        said = final_answer(answer, tags=self._form.tags)
        if not said:
            return Grade(0.0, "there is no answer in it")
        given = await self._scorer.grade(self._variant, self.item, said)
        if not self._form.partial_credit and given.score < 1.0:
            return attrs.evolve(given, score=0.0)
        return given

    async def step(self, completion: Completion) -> Step:
        """Scores the answer; the episode is over."""
        step = await super().step(completion)
        return attrs.evolve(step, metrics={**step.metrics, "level": float(self._variant.level or 0)})


def final_answer(text: str, *, tags: bool) -> str | None:
    """What of a text is the answer: what stands between the last tags; without `tags` also what is boxed, or all of it. None where there is nothing."""
    last = None
    for last in _TAGGED.finditer(text[-LONGEST_ANSWER:]):  # noqa: B007  (the last one)
        pass
    if last is not None:
        return last[1].strip() or None
    if tags:
        return None
    found = extract(text)
    return found.text if found is not None and found.how == "boxed" else text.strip() or None


class _Group(GroupBuilder):
    """Attempts at one problem, which is there when the members are made."""

    single_turn = True

    def __init__(self, groups: ReasoningGroups, index: int, variant: Variant) -> None:
        self._groups = groups
        self._index = index
        self._variant = variant
        self.tags = ("reasoning", variant.name)

    async def make_envs(self) -> Sequence[Env]:
        groups = self._groups
        item = await groups.item(self._index, self._variant)
        first = ReasoningEnv(groups.renderer, self._variant, item, groups.scorer, groups.form)
        envs = [first]
        for _ in range(groups.group_size - 1):
            env = ReasoningEnv(groups.renderer, self._variant, item, groups.scorer, groups.form)
            env.share_prompt(first)
            envs.append(env)
        return envs


class ReasoningGroups:
    """A dataset of groups: problem `index` is of a task that follows from the seed, at the level that the curriculum had when it was first asked for.

    Made by `open_reasoning_tasks`. To be walked in order (`RLSettings(shuffle=False)`): levels are those of the problems still to come.
    """

    def __init__(
        self,
        renderer: Renderer,
        source: ProblemSource,
        scorer: Scorer,
        descriptions: Mapping[str, Description],
        *,
        group_size: int,
        seed: int,
        count: int,
        chunk: int,
        curriculum: CurriculumConfig,
        form: ReasoningForm,
        options: Mapping[str, Any],
    ) -> None:
        self.renderer = renderer
        self.scorer = scorer
        self.form = form
        self.group_size = group_size
        self.curriculum = Curriculum(curriculum, {name: found.levels - 1 for name, found in descriptions.items()})
        self._source = source
        self._descriptions = descriptions
        self._seed = seed
        self._count = count
        self._chunk = chunk
        self._options = json.dumps(options, sort_keys=True)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self._count:
            raise IndexError(f"problem {index} of {self._count}")
        task = self.task_of(index)
        level = self.curriculum.hand_out(task, index)
        return _Group(self, index, self._variant(task, level))

    def task_of(self, index: int) -> str:
        """The task that a problem is of; all have equal chances."""
        names = list(self._descriptions)
        return names[random.Random(derive_seed(self._seed, index)).randrange(len(names))]

    def _variant(self, task: str, level: int) -> Variant:
        config = self.curriculum.config
        fixed = config.start is None or not self._descriptions[task].attributes
        return Variant(task, None if fixed else level, config.moves, config.inclusive, self._options)

    async def item(self, index: int, variant: Variant) -> Item:
        """The problem itself. Raises NotGenerated."""
        number = index // self._chunk
        wanted = {
            each: [
                place
                for place in range(self._chunk)
                if each * self._chunk + place < self._count and self.task_of(each * self._chunk + place) == variant.name
            ]
            for each in (number, number + 1)
        }
        return await self._source.problem(variant, index, wanted)

    def observe(self, index: int, group: TrajectoryGroup) -> None:
        """Success moves the level: see `envs.contracts.AdaptiveGroups`."""
        scores = [turn.metrics.get("correct", 0.0) for each in group.trajectories for turn in each.turns]
        self.curriculum.observe(self.task_of(index), index, sum(scores) / max(1, len(scores)))

    def state(self) -> Mapping[str, Any]:
        """JSON values."""
        return self.curriculum.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state of other tasks."""
        self.curriculum.restore(state)


@asynccontextmanager
async def open_reasoning_tasks(
    renderer: Renderer,
    tasks: Sequence[str],
    *,
    group_size: int = 8,
    seed: int = 0,
    count: int = 1_000_000,
    curriculum: CurriculumConfig | None = None,
    form: ReasoningForm | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    budget: float = 2.0,
    generation_budget: float = 60.0,
    chunk: int = 8,
    pool: WorkerPool | None = None,
) -> AsyncIterator[ReasoningGroups]:
    """Opens the tasks, with worker processes that generate and score; they end with the block.

    Args:
        tasks: names, as reasoning-gym has them ("chain_sum").
        count: problems in all. They are made when asked for, so a large number costs nothing.
        options: fields of the tasks' configurations, above the curriculum's.
        workers: processes; None: one for each CPU.
        budget: seconds that scoring one answer may take. generation_budget: and generating one problem.
        chunk: problems generated at once. It is part of what they are: another size gives other problems.
        pool: worker processes that are there already (`WorkerPool(preload=PRELOAD)`), which then outlive the block.

    Raises ImportError naming the extra without reasoning-gym, ValueError for a task or an attribute that does not exist.
    """
    require_reasoning_gym()
    config = curriculum or CurriculumConfig()
    if pool is None:
        async with WorkerPool(workers, preload=PRELOAD) as pool:  # noqa: PLR1704
            own = open_reasoning_tasks(
                renderer, tasks, group_size=group_size, seed=seed, count=count, curriculum=config, form=form, options=options,
                budget=budget, generation_budget=generation_budget, chunk=chunk, pool=pool,
            )  # fmt: skip
            async with own as opened:
                yield opened
        return
    if not tasks:
        raise ValueError("there is no task to learn: name one at least")
    descriptions = {name: _checked(await pool.run(describe, name, config.moves)) for name in tasks}
    async with _background() as background:
        source = ProblemSource(pool, background, seed=derive_seed(seed, 1), chunk=chunk, budget=generation_budget)
        yield ReasoningGroups(
            renderer,
            source,
            Scorer(pool, budget),
            descriptions,
            group_size=group_size,
            seed=seed,
            count=count,
            chunk=chunk,
            curriculum=config,
            form=form or ReasoningForm(),
            options=options or {},
        )


@asynccontextmanager
async def _background() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group whose tasks end with the block; what the block raises goes on as it is, not in a group."""
    tasks = await anyio.create_task_group().__aenter__()
    try:
        yield tasks
    finally:
        tasks.cancel_scope.cancel()
        await tasks.__aexit__(None, None, None)


def _checked(found: Description | str) -> Description:
    if isinstance(found, str):
        raise ValueError(found)
    return found


@asynccontextmanager
async def groups(
    renderer: Renderer,
    *,
    group_size: int,
    seed: int,
    tasks: str = "chain_sum",
    level: int | None = 0,
    tags: bool = False,
    budget: float = 2.0,
    workers: int | None = None,
) -> AsyncIterator[ReasoningGroups]:
    """For `envs.registry`: `tasks` by name, separated by commas; `level` None: the tasks' own default difficulty."""
    form = ReasoningForm() if tags else ReasoningForm(instruction="", tags=False)
    async with open_reasoning_tasks(
        renderer,
        [name.strip() for name in tasks.split(",")],
        group_size=group_size,
        seed=seed,
        curriculum=CurriculumConfig(start=level),
        form=form,
        budget=budget,
        workers=workers,
    ) as opened:
        yield opened
