"""Reinforcement learning on reasoning-gym's tasks: made on the spot, scored by their own scorers, harder as they are mastered (extra `gym`).

    python -m recipes.gym_rl                                                    # two minutes on two CPU cores: words spelt backward, a tiny model
    python -m recipes.gym_rl --list                                             # the tasks there are
    python -m recipes.gym_rl --model Qwen/Qwen3-1.7B --tasks countdown gcd knights_knaves --curriculum.window 64
    python -m recipes.gym_rl --model smollm2 --tasks basic_arithmetic --form.instruction " Answer with a number." --form.tags False

Every task begins at its lowest level of difficulty; when the mean score of the last groups reaches --curriculum.raise-at, its next problems are a level harder. Where the
levels stand is part of every checkpoint. Problems are generated and scored in worker processes, each answer within its budget; nothing of an answer is evaluated, though some of
the package's scorers would.

Without `--model`, a tiny Llama is warmed up by a pupil who mostly spells words forward that were to be spelt backward; the reward teaches the difference on words of three letters, and
then longer ones come. What this recipe leaves out: thinking with a budget of its own, several attempts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from envs.reasoning_tasks.curriculum import CurriculumConfig
from envs.reasoning_tasks.env import ReasoningForm
from recipes import cli, runs
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import FOR_REAL_MODELS as SIZES_FOR_REAL_MODELS
from recipes.reinforcement import ProblemConfig, reinforce
from recipes.terminal import say

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Renderer
    from engine.runtime import WorkerPool
    from envs.reasoning_tasks.dataset import ReasoningGroups

_positive = attrs.validators.ge(1)
_optional_positive: Any = attrs.validators.optional(_positive)
_seconds: Any = attrs.validators.gt(0)


@attrs.frozen
class GymGradingConfig:
    """Worker processes, and what they may take."""

    budget: float = attrs.field(default=2.0, validator=_seconds)
    """Seconds that scoring one answer may take, beyond which it is killed, wrong and counted."""
    generation_budget: float = attrs.field(default=60.0, validator=_seconds)
    """Seconds that generating one problem may take."""
    workers: int | None = attrs.field(default=None, validator=_optional_positive)
    """Worker processes; None: one for each CPU."""


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Reinforcement learning on reasoning-gym's tasks. Without flags: a tiny model learns to spell words backward, longer ones as it succeeds, in two minutes on two CPU cores."""

    tasks: tuple[str, ...] = ("spell_backward",)
    """Tasks, as reasoning-gym calls them; all come equally often."""
    list: bool = False
    """Print the tasks there are, and do nothing else."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=20))
    """Pace: synchronous by default."""
    steps: int = attrs.field(default=50, validator=_positive)
    """Optimizer steps."""
    warm_up: int = attrs.field(default=400, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    curriculum: CurriculumConfig = attrs.field(factory=lambda: CurriculumConfig(window=40))
    """How difficulty follows success."""
    form: ReasoningForm = attrs.field(factory=lambda: ReasoningForm(instruction="", tags=False, partial_credit=False))
    """How problems are asked, and in which form an answer is wanted."""
    options: str = "{}"
    """Fields of the tasks' own configurations, as a JSON object; they stand above the curriculum's."""
    grading: GymGradingConfig = attrs.field(factory=GymGradingConfig)
    """Worker processes, and what they may take."""
    evaluation_levels: tuple[int, ...] = (0, 1)
    """Levels of difficulty that are evaluated, each on problems of its own."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        try:
            found = json.loads(self.options)
        except ValueError as error:
            raise ValueError(f"options is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"options must be a JSON object, not {self.options}")


FOR_REAL_MODELS: dict[str, Any] = SIZES_FOR_REAL_MODELS | {
    "curriculum": CurriculumConfig(),
    "form": ReasoningForm(),
    "evaluation_problems": 64,
}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.runtime import WorkerPool
    from engine.runtime.seeds import derive_seed
    from envs.reasoning_tasks import require_reasoning_gym
    from envs.reasoning_tasks.dataset import PRELOAD
    from recipes.tiny_reasoning import VOCABULARY, worked
    from recipes.warm_up import open_worked

    require_reasoning_gym()
    pupil = partial(worked, derive_seed(config.seed, 0))
    stop, result = StopRequest(), None
    async with cli.stop_on_interrupt(stop), WorkerPool(config.grading.workers, preload=PRELOAD) as pool:
        if config.list:
            await _list(pool)
            return None
        await _check(config, pool)
        directory = runs.begin(config, "gym_rl")
        async with (
            open_worked(config, directory, ports, stop, pupil, vocabulary=VOCABULARY) as opened,
            _groups(config, opened.renderer, pool) as (groups, fixed),
        ):
            if not stop.requested:
                # In their own order: the curriculum's levels are those of the problems still to come.
                result = await reinforce(config, "gym_rl", directory, opened, groups, fixed, stop, shuffle=False)
            levels = ", ".join(f"{task} {level}" for task, level in groups.curriculum.levels.items())
    runs.tell(directory, result, "recipes.gym_rl")
    say(f"levels    {levels}")
    return result


async def _list(pool: WorkerPool) -> None:
    from envs.reasoning_tasks.work import describe, names

    for name in await pool.run(names):
        found = await pool.run(describe, name)
        told = found if isinstance(found, str) else f"{found.levels:3} levels   {', '.join(found.attributes)}"
        say(f"{name:28} {told}")


async def _check(config: Config, pool: WorkerPool) -> None:
    """Says what is wrong with the tasks before anything is made."""
    from envs.reasoning_tasks.work import describe

    for name in config.tasks:
        found = await pool.run(describe, name, config.curriculum.moves)
        if isinstance(found, str):
            raise ValueError(found)


@asynccontextmanager
async def _groups(
    config: Config, renderer: Renderer, pool: WorkerPool
) -> AsyncIterator[tuple[ReasoningGroups, Mapping[str, ReasoningGroups]]]:
    """What is trained on, and what is evaluated on, by name."""
    from engine.runtime.seeds import derive_seed
    from envs.reasoning_tasks import open_reasoning_tasks

    grading = config.grading
    opening = partial(
        open_reasoning_tasks,
        renderer,
        config.tasks,
        form=config.form,
        options=json.loads(config.options),
        budget=grading.budget,
        generation_budget=grading.generation_budget,
        pool=pool,
    )
    async with AsyncExitStack() as stack:
        trained = opening(group_size=config.group_size, seed=derive_seed(config.seed, 1), curriculum=config.curriculum)
        groups = await stack.enter_async_context(trained)
        fixed = {}
        for level in config.evaluation_levels:
            at_level = attrs.evolve(config.curriculum, start=level)
            tested = opening(
                group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2), curriculum=at_level
            )
            fixed[f"level {level}"] = await stack.enter_async_context(tested)
        yield groups, fixed


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
