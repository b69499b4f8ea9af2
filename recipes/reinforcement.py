"""Reinforcement learning as recipes share it: the flags of a run, and the run itself on a dataset of groups.

class Config(RLConfig): ...                         # a recipe adds its own fields
result = await reinforce(config, "tool_use", directory, opened, groups=groups, fixed=fixed, stop=stop)
"""

from __future__ import annotations

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


@attrs.frozen(kw_only=True, slots=False)  # so that a recipe's configuration can be both this and a RowsConfig
class RLConfig(runs.RunConfig):
    """A run of reinforcement learning."""

    steps: int = attrs.field(default=40, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=16))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=16, validator=_positive)
    """Attempts at each problem; advantages are centred over them."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """By name; None: importance_sampling where every group is on-policy, ppo where max-staleness lets some be older."""
    drop_constant_groups: bool = False
    """Replace groups whose attempts all get the same reward, instead of training on nothing."""
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    """Of sampling."""
    max_tokens: int = attrs.field(default=24, validator=_positive)
    """Longest answer."""
    episode_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    """Most sampled tokens of an episode, over all its turns; None: no limit."""
    episode_seconds: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0))
    )
    """Most seconds of an episode; None: no limit."""
    evaluate_every: int = attrs.field(default=20, validator=_positive)
    """Steps between evaluations on fixed problems."""
    evaluation_problems: int = attrs.field(default=128, validator=_positive)
    """How many those are."""
    inspect_tasks: tuple[str, ...] = ()
    """Tasks of inspect-ai to evaluate with too: module:function, file.py@function, or an installed one's name (pip install 'callsheet[inspect]')."""


def rl_settings(config: RLConfig) -> RLSettings:
    """The engine's settings of the flags."""
    from actors import RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from envs.rollout import RolloutLimits, RolloutSettings

    return RLSettings(
        rollout=RolloutSettings(
            SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature),
            RolloutLimits(max_tokens=config.episode_tokens, wall_clock=config.episode_seconds),
        ),
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
    *,
    groups: GroupDataset,
    fixed: GroupDataset,
    stop: StopRequest | None = None,
) -> RunResult:
    """Trains on `groups`, evaluates on `fixed`; `name` is shown beside the progress."""
    from actors import group_evaluation, train_rl
    from engine.telemetry import display
    from recipes.inspecting import inspect_evaluations

    settings = rl_settings(config)
    inspected = await inspect_evaluations(config, directory, opened.renderer, max_tokens=config.max_tokens)
    evaluation = group_evaluation(
        "fixed problems", fixed, settings.rollout, every=config.evaluate_every, seed=config.seed
    )
    with display.open(config.steps, name) as live:
        return await train_rl(
            opened.backend,
            groups=groups,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=[evaluation, *inspected],
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )
