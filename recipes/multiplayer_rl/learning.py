"""What the recipes of this folder share: flags, the warm-up of the tiny model on example games, training, evaluations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, OpenedModel
from recipes.ports import Ports

if TYPE_CHECKING:
    from actors import RLSettings, RunResult, StopRequest
    from engine.rendering import Message
    from engine.training.advantages import Advantage
    from envs.contracts import GroupDataset

_positive = attrs.validators.ge(1)
C = TypeVar("C", bound="GameConfig")


@attrs.frozen(kw_only=True)
class GameConfig(runs.RunConfig):
    """Flags of every game."""

    steps: int = attrs.field(default=40, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=24))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=16, validator=_positive)
    """Games in a group, all from the same start."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps before, of the tiny model, on games of a poor player."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=2e-3, warmup_steps=3))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """By name; None: importance_sampling where every group is on-policy, ppo where max-staleness lets some be older."""
    max_tokens: int = attrs.field(default=6, validator=_positive)
    """Longest answer."""
    episode_seconds: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0))
    )
    """Most seconds of one player's game; None: no limit."""
    evaluate_every: int = attrs.field(default=20, validator=_positive)
    """Steps between evaluations."""
    evaluation_games: int = attrs.field(default=128, validator=_positive)
    """Games of each evaluation, from the same starts every time."""


FOR_REAL_MODELS: dict[str, Any] = {
    "steps": 20,
    "schedule": Schedule(groups_per_step=4),
    "group_size": 4,
    "warm_up": 0,
    "learning_rate": LearningRateConfig(peak=5e-4, warmup_steps=3),
    "max_tokens": 24,
    "lora_rank": 16,
    "threads": None,
    "evaluate_every": 10,
    "evaluation_games": 16,
    "checkpoint_every": 5,
}
"""A model that speaks already needs no warm-up, and each of its tokens costs a CPU more than the tiny model's whole answers."""


@attrs.frozen
class Games:
    """What is played."""

    train: GroupDataset
    evaluations: Mapping[str, GroupDataset] = attrs.field(factory=dict)
    """By name."""
    advantages: str | Advantage = "reward_to_go"


@attrs.frozen
class Lesson:
    """A recipe of this folder."""

    module: str
    """What `python -m` runs."""
    example: Callable[[int], Sequence[Message]]
    """Example game number `n`, as messages: what the tiny model is warmed up on."""
    open_games: Callable[[OpenedModel, Path], AbstractAsyncContextManager[Games]]
    """Opens the games for a model, with what they need; the path is the run's directory."""
    context: int = 128
    """Longest game of the tiny model, in its tokens."""
    vocabulary: int = 512
    """Most tokens of the tiny model: enough that long texts which come again and again are few of them."""

    @property
    def name(self) -> str:
        """Of the recipe."""
        return self.module.rpartition(".")[2]


@asynccontextmanager
async def ready(games: Games) -> AsyncIterator[Games]:
    """Games that need nothing to be opened."""
    yield games


async def learn(config: GameConfig, ports: Ports, lesson: Lesson) -> RunResult | None:
    """Runs a recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest

    directory = runs.begin(config, lesson.name)
    stop = StopRequest()
    async with cli.stop_on_interrupt(stop), _open(config, directory, ports, lesson, stop) as opened:
        result = None
        if not stop.requested:
            async with lesson.open_games(opened, directory) as games:
                result = await _train(config, directory, opened, games, lesson, stop)
    runs.tell(directory, result, lesson.module)
    return result


@asynccontextmanager
async def _open(
    config: GameConfig, directory: Path, ports: Ports, lesson: Lesson, stop: StopRequest
) -> AsyncIterator[OpenedModel]:
    """The model that RL starts from."""
    from recipes.models import RENDERERS
    from recipes.warm_up import WorkedConversations, tiny_model_for, warm_up

    make_tiny = None
    if config.model == TINY:
        shown = [lesson.example(-1 - number) for number in range(200)]
        renderer = config.renderer or RENDERERS[TINY]
        make_tiny = tiny_model_for(renderer, shown, context=lesson.context, vocabulary=lesson.vocabulary)
    async with ports.open_model(config, directory, seed=config.seed, make_tiny=make_tiny) as opened:
        if config.model == TINY and config.warm_up:
            batches = WorkedConversations(opened.renderer, lesson.example, config.warm_up, batch_size=128)
            await warm_up(opened, directory, batches, resume=config.resume, stop=stop)
        yield opened


async def _train(
    config: GameConfig, directory: Path, opened: OpenedModel, games: Games, lesson: Lesson, stop: StopRequest
) -> RunResult:
    from actors import group_evaluation, train_rl
    from engine.telemetry import display

    settings = _settings(config, games)
    with display.open(config.steps, lesson.name) as live:
        return await train_rl(
            opened.backend,
            groups=games.train,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=[
                group_evaluation(name, groups, settings.rollout, every=config.evaluate_every, seed=config.seed)
                for name, groups in games.evaluations.items()
            ],
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _settings(config: GameConfig, games: Games) -> RLSettings:
    from actors import RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from envs.rollout import RolloutLimits, RolloutSettings

    return RLSettings(
        rollout=RolloutSettings(
            SamplingParams(max_tokens=config.max_tokens), RolloutLimits(wall_clock=config.episode_seconds)
        ),
        loss=None if config.loss is None else Loss(config.loss),
        advantages=games.advantages,
        optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        drop_constant_groups=False,
        samples_per_step=4,
        seed=config.seed,
    )
