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
from recipes.models import OpenedModel
from recipes.ports import Ports
from recipes.reinforcement import RLConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Message
    from engine.training.advantages import Advantage
    from envs.contracts import GroupDataset

_positive = attrs.validators.ge(1)
C = TypeVar("C", bound="GameConfig")


@attrs.frozen(kw_only=True)
class GameConfig(RLConfig):
    """Flags of every game."""

    group_size: int = attrs.field(default=16, validator=_positive)
    """Games in a group, all from the same start."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes, on games of a poor player."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=2e-3, warmup_steps=3))
    """The learning rate over the run."""
    max_tokens: int = attrs.field(default=6, validator=_positive)
    """Longest answer, in tokens."""
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
        """The recipe's name."""
        return self.module.rpartition(".")[2]


@asynccontextmanager
async def ready(games: Games) -> AsyncIterator[Games]:
    """Games that need nothing to be opened."""
    yield games


async def learn(config: GameConfig, ports: Ports, lesson: Lesson) -> RunResult | None:
    """Runs a recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from recipes.warm_up import open_worked

    directory = runs.begin(config, lesson.name)
    stop, result = StopRequest(), None
    sizes = {"context": lesson.context, "vocabulary": lesson.vocabulary}
    async with (
        cli.stop_on_interrupt(stop),
        open_worked(config, directory, ports, stop, lesson.example, **sizes) as opened,
    ):
        if not stop.requested:
            async with lesson.open_games(opened, directory) as games:
                result = await reinforce(
                    config,
                    lesson.name,
                    directory,
                    opened,
                    games.train,
                    games.evaluations,
                    stop,
                    advantages=games.advantages,
                )
    runs.tell(directory, result, lesson.module)
    return result
