"""Reinforcement learning on tasks of the `verifiers` package (pip install 'callsheet[verifiers]').

    python -m recipes.verifiers_rl                                                      # sums, as a taskset made here; a minute or two on two CPU cores
    python -m recipes.verifiers_rl --taskset my_package.tasks:Puzzles --model Qwen/Qwen3-4B-Instruct-2507 --lora-rank 32 --max-tokens 512

What this recipe leaves out: tasks that a harness plays in a container or with tool servers. They are refused, with the reason.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, OpenedModel
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import RLConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult, StopRequest

INVENTED = "recipes.invented_tasks:Sums"


@attrs.frozen(kw_only=True)
class Config(RLConfig):
    """Tasks of the package verifiers. Without flags: sums, and a tiny model that is made, warmed up and trained."""

    taskset: str = INVENTED
    """Which tasks: module:Class of a taskset, or the id of an installed one."""
    limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
    """Tasks to take at most, the first ones; needed where they never end."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=32))
    """Pace: synchronous by default."""
    max_tokens: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Longest answer."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps before, of the tiny model."""


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
    from engine.runtime.offload import offload
    from envs.verifiers_tasks import VerifiersGroups, load_tasks

    directory = runs.begin(config, "verifiers_rl")
    tasks = await offload(lambda: load_tasks(config.taskset, limit=config.limit))
    held_out = min(config.evaluation_problems, len(tasks) // 2)
    if not held_out:
        raise ValueError(f"{config.taskset} has one task: two are needed, to train on one and to evaluate on the other")
    stop, result = StopRequest(), None
    async with cli.stop_on_interrupt(stop), ports.open_model(config, directory, seed=config.seed) as opened:
        if config.model == TINY and config.warm_up:
            await _warm_up(config, directory, opened, stop)
        if not stop.requested:
            groups = VerifiersGroups(tasks[held_out:], opened.renderer, config.group_size)
            fixed = VerifiersGroups(tasks[:held_out], opened.renderer, group_size=1)
            result = await reinforce(config, "verifiers_rl", directory, opened, groups=groups, fixed=fixed, stop=stop)
    runs.tell(directory, result, "recipes.verifiers_rl")
    return result


async def _warm_up(config: Config, directory: Path, opened: OpenedModel, stop: StopRequest) -> None:
    """The worked examples of a pupil who forgets to carry."""
    from engine.runtime.seeds import derive_seed
    from envs.arithmetic import Difficulty
    from recipes.tiny import WorkedExamples
    from recipes.warm_up import warm_up

    sums = Difficulty(digits=2, digits_right=1, carry=1.0)
    examples = WorkedExamples(opened.renderer, sums, config.warm_up, seed=derive_seed(config.seed, 0))
    await warm_up(opened, directory, examples, resume=config.resume, stop=stop)


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
