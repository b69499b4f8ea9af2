"""Reasoning-gym's tasks as a dataset of groups, with a curriculum; and how it is opened."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from engine.rendering import Renderer
from engine.runtime.processes import WorkerPool
from engine.runtime.seeds import derive_seed
from engine.training.trajectories import TrajectoryGroup
from envs.contracts import Env, GroupBuilder
from envs.reasoning_tasks.curriculum import Curriculum, CurriculumConfig
from envs.reasoning_tasks.env import ReasoningEnv, ReasoningForm, Scorer
from envs.reasoning_tasks.source import ProblemSource
from envs.reasoning_tasks.work import Description, Item, Variant, describe, require_reasoning_gym

PRELOAD = ("envs.reasoning_tasks.warm",)
"""What a worker imports before its first job."""


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
    if not tasks:
        raise ValueError("there is no task to learn: name one at least")
    config = curriculum or CurriculumConfig()
    async with AsyncExitStack() as stack:
        if pool is None:
            pool = await stack.enter_async_context(WorkerPool(workers, preload=PRELOAD))
        descriptions = {name: _checked(await pool.run(describe, name, config.moves)) for name in tasks}
        background = await stack.enter_async_context(_background())
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
