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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from envs.arithmetic import Difficulty
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, OpenedModel
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RLSettings, RunResult, StopRequest

_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class Config(runs.RunConfig):
    """Reinforcement learning of arithmetic. Without flags: a tiny model is made, warmed up and trained in two minutes on two CPU cores."""

    steps: int = attrs.field(default=40, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=32))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=16, validator=_positive)
    """Answers to each problem; advantages are centred over them."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(digits=2, digits_right=1, carry=1.0))
    """Which problems are drawn."""
    examples: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Problems shown with their answers before each question."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps before, of the tiny model."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """By name; None: importance_sampling where every group is on-policy, ppo where max-staleness lets some be older."""
    drop_constant_groups: bool = False
    """Replace groups whose answers are all right or all wrong, instead of training on nothing."""
    max_tokens: int = attrs.field(default=8, validator=_positive)
    """Longest answer."""
    evaluate_every: int = attrs.field(default=20, validator=_positive)
    """Steps between evaluations on fixed problems."""
    evaluation_problems: int = attrs.field(default=128, validator=_positive)
    """How many those are."""
    inspect_tasks: tuple[str, ...] = ()
    """Tasks of inspect-ai to evaluate with too: module:function, file.py@function, or an installed one's name (pip install 'callsheet[inspect]')."""


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

    directory = runs.begin(config, "rl_loop")
    stop = StopRequest()
    async with cli.stop_on_interrupt(stop), _open(config, directory, ports, stop) as opened:
        result = None if stop.requested else await _train(config, directory, opened, stop)
    runs.tell(directory, result, "recipes.rl_loop")
    return result


@asynccontextmanager
async def _open(config: Config, directory: Path, ports: Ports, stop: StopRequest) -> AsyncIterator[OpenedModel]:
    """The model that RL starts from."""
    async with ports.open_model(config, directory, seed=config.seed) as opened:
        if config.model == TINY and config.warm_up:
            await _warm_up(config, directory, opened, stop)
        yield opened


async def _warm_up(config: Config, directory: Path, opened: OpenedModel, stop: StopRequest) -> None:
    """The supervised phase: the worked examples of a pupil who forgets to carry."""
    from engine.runtime.seeds import derive_seed
    from recipes.tiny import WorkedExamples
    from recipes.warm_up import warm_up

    examples = WorkedExamples(opened.renderer, config.difficulty, config.warm_up, seed=derive_seed(config.seed, 0))
    await warm_up(opened, directory, examples, resume=config.resume, stop=stop)


async def _train(config: Config, directory: Path, opened: OpenedModel, stop: StopRequest) -> RunResult:
    from actors import group_evaluation, train_rl
    from engine.runtime.seeds import derive_seed
    from engine.telemetry import display
    from envs.arithmetic import ArithmeticGroups
    from recipes.inspecting import inspect_evaluations

    settings = _settings(config)
    inspected = await inspect_evaluations(config, directory, opened.renderer, max_tokens=config.max_tokens)
    problems = ArithmeticGroups(
        opened.renderer,
        config.difficulty,
        config.group_size,
        seed=derive_seed(config.seed, 1),
        examples=config.examples,
    )
    fixed = attrs.evolve(problems, group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2))
    with display.open(config.steps, "rl_loop") as live:
        return await train_rl(
            opened.backend,
            groups=problems,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=[
                group_evaluation(
                    "fixed problems", fixed, settings.rollout, every=config.evaluate_every, seed=config.seed
                ),
                *inspected,
            ],
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _settings(config: Config) -> RLSettings:
    from actors import RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from envs.rollout import RolloutSettings

    return RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=config.max_tokens)),
        loss=None if config.loss is None else Loss(config.loss),
        optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        drop_constant_groups=config.drop_constant_groups,
        samples_per_step=4,
        seed=config.seed,
    )


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
