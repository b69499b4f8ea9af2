"""Reinforcement learning of arithmetic: the main job.

    python -m recipes.rl_loop                                # two minutes on two CPU cores, nothing needed but this package and torch
    python -m recipes.rl_loop --schedule.max-staleness 2     # asynchronous: sampling and training at the same time
    python -m recipes.rl_loop --schedule.minibatches 4       # streaming: training begins before the last answer is in
    python -m recipes.rl_loop --model smollm2                # SmolLM2-135M-Instruct, some minutes; any Hugging Face causal LM works by name or path

Without `--model`, a tiny Llama is made and warmed up on the worked examples of a pupil who forgets to carry (`recipes.tiny`); the reward then
teaches it to, on sums of which all carry. (It comes to carry where nothing should be, too: `--difficulty.carry 0.8` shows it other sums as well,
and is harder to learn.) What this recipe leaves out: thinking before the answer, problems in words, several turns.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from envs.arithmetic import Difficulty
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import ProblemConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Renderer


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Reinforcement learning of arithmetic. Without flags: a tiny model is made, warmed up and trained in two minutes on two CPU cores."""

    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=32))
    """Pace: synchronous by default."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(digits=2, digits_right=1, carry=1.0))
    """Which problems are drawn."""
    examples: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Problems shown with their answers before each question."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    max_tokens: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""


FOR_REAL_MODELS: dict[str, Any] = {
    "steps": 20,
    "schedule": Schedule(groups_per_step=6),
    "group_size": 8,
    "difficulty": Difficulty(digits=1),
    "examples": 3,
    "warm_up": 0,
    "learning_rate": LearningRateConfig(peak=5e-4, warmup_steps=3),
    "max_tokens": 8,
    "lora_rank": 16,
    "threads": None,
    "evaluate_every": 10,
    "evaluation_problems": 32,
    "checkpoint_every": 5,
}
"""A model that speaks already needs no warm-up, and each of its tokens costs a CPU more than the tiny model's whole answers."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.runtime.seeds import derive_seed
    from envs.arithmetic import ArithmeticGroups
    from recipes.tiny import WorkedExamples
    from recipes.warm_up import open_warmed_up

    def forgetful_pupil(renderer: Renderer) -> WorkedExamples:
        return WorkedExamples(renderer, config.difficulty, config.warm_up, seed=derive_seed(config.seed, 0))

    directory = runs.begin(config, "rl_loop")
    stop, result = StopRequest(), None
    async with (
        cli.stop_on_interrupt(stop),
        open_warmed_up(config, directory, ports, stop, forgetful_pupil) as opened,
    ):
        groups = ArithmeticGroups(
            opened.renderer,
            config.difficulty,
            config.group_size,
            seed=derive_seed(config.seed, 1),
            examples=config.examples,
        )
        fixed = attrs.evolve(groups, group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2))
        if not stop.requested:
            result = await reinforce(config, "rl_loop", directory, opened, groups, {"fixed problems": fixed}, stop)
    runs.tell(directory, result, "recipes.rl_loop")
    return result


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
