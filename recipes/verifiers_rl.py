"""Reinforcement learning on tasks of the `verifiers` package (pip install 'callsheet[verifiers]').

    python -m recipes.verifiers_rl                                                      # sums, as a taskset made here; a minute or two on two CPU cores
    python -m recipes.verifiers_rl --taskset my_package.tasks:Puzzles --model Qwen/Qwen3-4B-Instruct-2507 --lora-rank 32 --max-tokens 512
    python -m recipes.verifiers_rl --environment recipes.invented_game --steps 25 --schedule.groups-per-step 12 --group-size 8 --max-tokens 6      # a game in turns
    python -m recipes.verifiers_rl --environment my-env --max-turns 8 --concurrency 16 --model Qwen/Qwen3-4B-Instruct-2507 --lora-rank 32

`--taskset`: one answer to each task, scored by the task, all answers of a group in one request. `--environment`: the environment's own rollout, with its tools, users and harness, in as many turns as it takes.
What this recipe leaves out: episodes in which several agents are the policy. They are refused, with the reason.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, MakeTiny, OpenedModel
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import ProblemConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult, StopRequest
    from engine.rendering import Message
    from envs.contracts import GroupDataset

INVENTED = "recipes.invented_tasks:Sums"
GAME = "recipes.invented_game"
KNOWS = 0.2
"""Share of the example games whose player halves what is left; the others guess anything."""


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Tasks of the package verifiers. Without flags: sums, and a tiny model that is made, warmed up and trained."""

    taskset: str = INVENTED
    """Which tasks: module:Class of a taskset, or the id of an installed one."""
    environment: str | None = None
    """Which environment is played through its own rollout, in turns: the id of an installed one, or a module that exports its taskset; None: --taskset."""
    harness: str | None = None
    """What plays --environment, by verifiers' name or as a module; None: the environment's own, or else a chat loop with tools in this process."""
    max_turns: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Answers of an episode of --environment, which verifiers ends there and scores; None: the environment's own limit."""
    concurrency: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Rollouts of --environment at once, for harnesses that are programs; None: no limit of its own."""
    limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
    """Tasks to take at most, the first ones; needed where they never end."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=32))
    """Pace: synchronous by default."""
    max_tokens: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""


FOR_REAL_MODELS: dict[str, Any] = {
    "steps": 50,
    "schedule": Schedule(groups_per_step=8),
    "group_size": 8,
    "learning_rate": LearningRateConfig(peak=5e-5, warmup_steps=3),
    "max_tokens": 512,
    "lora_rank": 32,
    "threads": None,
    "warm_up": 0,
    "evaluation_problems": 32,
}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest

    directory = runs.begin(config, "verifiers_rl")
    stop, result = StopRequest(), None
    make_tiny = _game_model(config) if config.environment == GAME and config.model == TINY else None
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_tiny) as opened,
        _groups(config, opened) as (groups, fixed),
    ):
        if config.model == TINY and config.warm_up:
            await _warm_up(config, directory, opened, stop)
        if not stop.requested:
            result = await reinforce(config, "verifiers_rl", directory, opened, groups, {"fixed problems": fixed}, stop)
    runs.tell(directory, result, "recipes.verifiers_rl")
    return result


@asynccontextmanager
async def _groups(config: Config, opened: OpenedModel) -> AsyncIterator[tuple[GroupDataset, GroupDataset]]:
    """What is trained on, and what is evaluated on."""
    from engine.runtime.offload import offload
    from envs.verifiers_tasks import VerifiersGroups, load_tasks

    if config.environment is None:
        tasks = await offload(lambda: load_tasks(config.taskset, limit=config.limit))
        whole: Any = VerifiersGroups(tasks, opened.renderer, config.group_size)
        yield _split(config, whole, config.taskset)
        return
    from envs.verifiers_episodes import playing

    async with playing(
        config.environment,
        opened.renderer,
        group_size=config.group_size,
        limit=config.limit,
        max_turns=config.max_turns,
        concurrency=config.concurrency,
        harness=config.harness,
    ) as groups:
        yield _split(config, groups, config.environment)


def _split(config: Config, groups: Any, source: str) -> tuple[GroupDataset, GroupDataset]:
    """The first tasks are held out."""
    held_out = min(config.evaluation_problems, len(groups) // 2)
    if not held_out:
        raise ValueError(f"{source} has one task: two are needed, to train on one and to evaluate on the other")
    fixed = attrs.evolve(groups, tasks=groups.tasks[:held_out], group_size=1)
    return attrs.evolve(groups, tasks=groups.tasks[held_out:]), fixed


# ---- the tiny model


def _game_model(config: Config) -> MakeTiny:
    from recipes.models import RENDERERS
    from recipes.warm_up import tiny_model_for

    shown = [_game(config, -1 - number) for number in range(200)]
    return tiny_model_for(config.renderer or RENDERERS[TINY], shown, context=128, vocabulary=512)


def _game(config: Config, number: int) -> Sequence[Message]:
    """Game `number` of players of whom few know what the hints are for."""
    from engine.runtime.seeds import derive_seed
    from envs.games.guess_number import conversation, example_game
    from recipes.invented_game import RULES

    rng = random.Random(derive_seed(config.seed, 0, number))
    return conversation(example_game(RULES, rng, knows=KNOWS))


async def _warm_up(config: Config, directory: Path, opened: OpenedModel, stop: StopRequest) -> None:
    """Sums of a pupil who forgets to carry, or games of players who do not listen."""
    from engine.runtime.seeds import derive_seed
    from envs.arithmetic import Difficulty
    from recipes.tiny import WorkedExamples
    from recipes.warm_up import WorkedConversations, warm_up

    batches: Any
    if config.environment == GAME:
        batches = WorkedConversations(opened.renderer, partial(_game, config), config.warm_up, batch_size=128)
    else:
        sums = Difficulty(digits=2, digits_right=1, carry=1.0)
        batches = WorkedExamples(opened.renderer, sums, config.warm_up, seed=derive_seed(config.seed, 0))
    await warm_up(opened, directory, batches, resume=config.resume, stop=stop)


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
