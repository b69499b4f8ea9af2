"""Reinforcement learning of a game of several turns: guess a number by hints.

    python -m recipes.multiplayer_rl.guess_number                                              # two minutes on two CPU cores
    python -m recipes.multiplayer_rl.guess_number --game.high 20 --game.guesses 7              # more numbers
    python -m recipes.multiplayer_rl.guess_number --model smollm2 --game.high 20               # a model that speaks already

Without `--model`, a tiny Llama is made and warmed up on the games of players of whom few know what the hints are for; the reward, 1 for finding the number in time, teaches
it to play as those do. Each turn has the reward of what came after it (`reward_to_go`).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from envs.games.guess_number import GuessGroups, GuessRules, conversation, example_game
from recipes import cli, runs
from recipes.models import OpenedModel
from recipes.multiplayer_rl.learning import FOR_REAL_MODELS, GameConfig, Games, Lesson, learn, ready
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Message

KNOWS = 0.2
"""Share of the example games whose player halves what is left; the others guess anything."""


@attrs.frozen(kw_only=True)
class Config(GameConfig):
    """Reinforcement learning of guessing a number by hints. Without flags: a tiny model is made, warmed up and trained in two minutes on two CPU cores."""

    game: GuessRules = attrs.field(factory=lambda: GuessRules(1, 15, 4, explain=False))
    """Which numbers, how many guesses, what is won."""
    steps: int = attrs.field(default=25, validator=attrs.validators.ge(1))
    """Optimizer steps."""


BY_MODEL: dict[str, Any] = {**FOR_REAL_MODELS, "game": GuessRules(1, 20, 6)}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    module = "recipes.multiplayer_rl.guess_number"
    return await learn(config, ports, Lesson(module, partial(_example, config), partial(_games, config)))


def _example(config: Config, number: int) -> Sequence[Message]:
    from engine.runtime.seeds import derive_seed

    rng = random.Random(derive_seed(config.seed, 0, number))
    return conversation(example_game(config.game, rng, knows=KNOWS))


def _games(config: Config, opened: OpenedModel, _: Path) -> AbstractAsyncContextManager[Games]:
    from engine.runtime.seeds import derive_seed

    train = GuessGroups(opened.renderer, config.game, config.group_size, seed=derive_seed(config.seed, 1))
    fixed = attrs.evolve(train, group_size=1, count=config.evaluation_games, seed=derive_seed(config.seed, 2))
    return ready(Games(train, {"fixed numbers": fixed}))


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=BY_MODEL))
