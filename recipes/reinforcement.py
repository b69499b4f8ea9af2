"""Reinforcement learning as recipes share it: the flags of a run, and the run itself on a dataset of groups.

class Config(ProblemConfig): ...                         # a recipe adds its own fields

async with open_warmed_up(config, directory, ports, stop, batches) as opened:       # recipes.warm_up
    result = await reinforce(config, "math_rl", directory, opened, groups, {"test problems": fixed}, stop)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from recipes import runs
from recipes.learning_rates import LearningRateConfig

if TYPE_CHECKING:
    from actors import RLSettings, RunResult, StopRequest
    from envs.contracts import GroupDataset
    from recipes.models import OpenedModel

_positive: Any = attrs.validators.ge(1)
_optional_positive: Any = attrs.validators.optional(_positive)
_not_negative: Any = attrs.validators.ge(0.0)
_seconds: Any = attrs.validators.optional(attrs.validators.gt(0.0))


@attrs.frozen(kw_only=True, slots=False)  # so that a recipe's configuration can be both this and a RowsConfig
class RLConfig(runs.RunConfig):
    """A run of reinforcement learning."""

    steps: int = attrs.field(default=40, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=24))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=16, validator=_positive)
    """Attempts at each problem; advantages are centred over them."""
    warm_up: int = attrs.field(default=200, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=_not_negative)
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """Loss, by name; None: importance_sampling where every group is on-policy, ppo where --schedule.max-staleness lets some be older."""
    drop_constant_groups: bool = False
    """Replace groups whose attempts all get the same reward, instead of training on nothing."""
    max_tokens: int = attrs.field(default=12, validator=_positive)
    """Longest answer, in tokens."""
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    """Sampling temperature in training."""
    turn_seconds: float | None = attrs.field(default=None, validator=_seconds)
    """Most seconds for the environment's side of a turn: grading, tools, waiting for a worker; None: no limit but the environment's own."""
    episode_tokens: int | None = attrs.field(default=None, validator=_optional_positive)
    """Most sampled tokens of an episode, over all its turns; None: no limit."""
    episode_seconds: float | None = attrs.field(default=None, validator=_seconds)
    """Most seconds of an episode; None: no limit."""
    evaluate_every: int = attrs.field(default=20, validator=_positive)
    """Steps between evaluations."""
    evaluation_concurrency: int = attrs.field(default=32, validator=_positive)
    """Groups of an evaluation under way at once."""
    evaluation_temperature: float | None = attrs.field(default=None, validator=attrs.validators.optional(_not_negative))
    """Sampling temperature in evaluations; 0 is greedy, None: as in training."""
    inspect_tasks: tuple[str, ...] = ()
    """Tasks of inspect-ai to evaluate with too: module:function, file.py@function, or an installed one's name (pip install 'callsheet[inspect]')."""


@attrs.frozen(kw_only=True, slots=False)
class ProblemConfig(RLConfig):
    """A run of reinforcement learning on problems, some of which are kept for evaluation."""

    evaluation_problems: int = attrs.field(default=128, validator=_positive)
    """Problems of each evaluation, at most, the same every time."""


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


def rl_settings(config: RLConfig) -> RLSettings:
    """The engine's settings of the flags."""
    from actors import RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from envs.rollout import RolloutLimits, RolloutSettings

    limits = RolloutLimits(
        turn=config.turn_seconds, max_tokens=config.episode_tokens, wall_clock=config.episode_seconds
    )
    return RLSettings(
        rollout=RolloutSettings(SamplingParams(config.max_tokens, temperature=config.temperature), limits),
        loss=None if config.loss is None else Loss(config.loss),
        optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        drop_constant_groups=config.drop_constant_groups,
        samples_per_step=4,
        seed=config.seed,
    )


async def reinforce(
    config: RLConfig,
    name: str,
    directory: Path,
    opened: OpenedModel,
    groups: GroupDataset,
    evaluations: Mapping[str, GroupDataset],
    stop: StopRequest,
    **settings: Any,
) -> RunResult:
    """Trains on `groups`, and evaluates on those by name. `name` is shown beside the progress; `settings` are further ones of `RLSettings`."""
    from actors import group_evaluation, train_rl
    from engine.backends.values import SamplingParams
    from engine.telemetry import display
    from recipes.inspecting import inspect_evaluations

    training = attrs.evolve(rl_settings(config), **settings)
    temperature = config.temperature if config.evaluation_temperature is None else config.evaluation_temperature
    tested = attrs.evolve(training.rollout, sampling=SamplingParams(config.max_tokens, temperature=temperature))
    played = [
        group_evaluation(
            title,
            fixed,
            tested,
            every=config.evaluate_every,
            concurrency=config.evaluation_concurrency,
            seed=config.seed,
        )
        for title, fixed in evaluations.items()
    ]
    inspected = await inspect_evaluations(config, directory, opened.renderer, max_tokens=config.max_tokens)
    with display.open(config.steps, name) as live:
        return await train_rl(
            opened.backend,
            groups=groups,
            steps=config.steps,
            schedule=config.schedule,
            settings=training,
            evaluations=[*played, *inspected],
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )
