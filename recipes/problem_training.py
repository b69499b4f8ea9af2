"""What recipes share that train on problems with one answer each: flags, the warm-up of the tiny model, training, evaluations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from recipes import runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import RENDERERS, TINY, OpenedModel
from recipes.ports import Ports

if TYPE_CHECKING:
    from actors import RLSettings, RunResult, StopRequest
    from engine.rendering import Message
    from envs.contracts import GroupDataset

_positive = attrs.validators.ge(1)
_seconds: Any = attrs.validators.optional(attrs.validators.gt(0.0))


@attrs.frozen(kw_only=True)
class ProblemConfig(runs.RunConfig):
    """Flags of every such recipe."""

    steps: int = attrs.field(default=40, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=24))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=16, validator=_positive)
    """Answers to each problem; advantages are centred over them."""
    warm_up: int = attrs.field(default=200, validator=attrs.validators.ge(0))
    """Supervised steps before, of the tiny model."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """By name; None: importance_sampling where every group is on-policy, ppo where max-staleness lets some be older."""
    drop_constant_groups: bool = False
    """Replace groups whose answers are all right or all wrong, instead of training on nothing."""
    max_tokens: int = attrs.field(default=12, validator=_positive)
    """Longest answer."""
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    """Of sampling in training."""
    turn_seconds: float | None = attrs.field(default=None, validator=_seconds)
    """Most seconds for grading an answer, waiting for a worker included; None: no limit beside the worker's budget."""
    evaluate_every: int = attrs.field(default=20, validator=_positive)
    """Steps between evaluations on fixed problems."""
    evaluation_problems: int = attrs.field(default=128, validator=_positive)
    """How many those are, at most."""
    evaluation_concurrency: int = attrs.field(default=32, validator=_positive)
    """Problems of an evaluation under way at once."""
    evaluation_temperature: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Of sampling in evaluations; 0 is greedy."""
    inspect_tasks: tuple[str, ...] = ()
    """Tasks of inspect-ai to evaluate with too: module:function, file.py@function, or an installed one's name (pip install 'callsheet[inspect]')."""


FOR_REAL_MODELS: dict[str, Any] = {
    "steps": 100,
    "schedule": Schedule(groups_per_step=16),
    "group_size": 8,
    "warm_up": 0,
    "learning_rate": LearningRateConfig(peak=2e-4, warmup_steps=3),
    "drop_constant_groups": True,
    "max_tokens": 512,
    "lora_rank": 32,
    "threads": None,
    "evaluate_every": 20,
    "checkpoint_every": 10,
}
"""A model that speaks already needs no warm-up, and each of its tokens costs a CPU more than the tiny model's whole answers."""

Worked = Callable[[int], "Sequence[Message]"]
"""Example `n` of an endless stream, as messages: what the tiny model is warmed up on."""


@asynccontextmanager
async def opened_model(
    config: ProblemConfig,
    directory: Path,
    ports: Ports,
    stop: StopRequest,
    worked: Worked | None,
    **sizes: Any,
) -> AsyncIterator[OpenedModel]:
    """The model that reinforcement learning starts from; the tiny one is made for the examples and warmed up on them. `sizes`: as `recipes.tiny.make_model` takes them."""
    from recipes.warm_up import WorkedConversations, tiny_model_for, warm_up

    make_tiny = None
    if config.model == TINY and worked is not None:
        shown = [worked(-1 - number) for number in range(200)]
        make_tiny = tiny_model_for(config.renderer or RENDERERS[TINY], shown, **sizes)
    async with ports.open_model(config, directory, seed=config.seed, make_tiny=make_tiny) as opened:
        if config.model == TINY and config.warm_up and worked is not None:
            batches = WorkedConversations(opened.renderer, worked, config.warm_up, batch_size=128)
            await warm_up(opened, directory, batches, resume=config.resume, stop=stop)
        yield opened


async def train(
    config: ProblemConfig,
    directory: Path,
    opened: OpenedModel,
    groups: GroupDataset,
    evaluations: Mapping[str, GroupDataset],
    stop: StopRequest,
    name: str,
    *,
    shuffle: bool = True,
) -> RunResult:
    """Trains on the groups, and evaluates on those by name. `shuffle` off: problems come in their own order."""
    from actors import group_evaluation, train_rl
    from engine.backends.values import SamplingParams
    from engine.telemetry import display
    from recipes.inspecting import inspect_evaluations

    inspected = await inspect_evaluations(config, directory, opened.renderer, max_tokens=config.max_tokens)
    settings = attrs.evolve(_settings(config), shuffle=shuffle)
    tested = attrs.evolve(
        settings.rollout, sampling=SamplingParams(config.max_tokens, temperature=config.evaluation_temperature)
    )
    with display.open(config.steps, name) as live:
        return await train_rl(
            opened.backend,
            groups=groups,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=[
                group_evaluation(
                    title,
                    problems,
                    tested,
                    every=config.evaluate_every,
                    concurrency=config.evaluation_concurrency,
                    seed=config.seed,
                )
                for title, problems in evaluations.items()
            ]
            + inspected,
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _settings(config: ProblemConfig) -> RLSettings:
    from actors import RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from envs.rollout import RolloutLimits, RolloutSettings

    return RLSettings(
        rollout=RolloutSettings(
            SamplingParams(config.max_tokens, temperature=config.temperature), RolloutLimits(turn=config.turn_seconds)
        ),
        loss=None if config.loss is None else Loss(config.loss),
        optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        drop_constant_groups=config.drop_constant_groups,
        samples_per_step=4,
        seed=config.seed,
    )
