"""Reinforcement learning of tic-tac-toe, against oneself or others.

    python -m recipes.multiplayer_rl.tic_tac_toe                                    # self-play, two minutes on two CPU cores
    python -m recipes.multiplayer_rl.tic_tac_toe --opponent mixed                   # against a player who is perfect in two moves of three
    python -m recipes.multiplayer_rl.tic_tac_toe --opponent start                   # against the policy as it was in the beginning
    python -m recipes.multiplayer_rl.tic_tac_toe --model smollm2

In self-play both players of each match are the policy, and both learn: first movers are compared with first movers, second ones with second ones. It is evaluated against a random
player, a perfect one, and itself as it was in the beginning. Without `--model`, a tiny Llama is made and warmed up on positions whose answers are mostly any free square.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from actors.schedule import Schedule
from envs.games.match import MatchRules
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, OpenedModel, frozen_completer
from recipes.multiplayer_rl.learning import FOR_REAL_MODELS, GameConfig, Games, Lesson, learn
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Message

KNOWS = 0.2
"""Share of the example positions that are answered perfectly; the others, with any free square."""


@attrs.frozen(kw_only=True)
class Config(GameConfig):
    """Reinforcement learning of tic-tac-toe. Without flags: a tiny model is made, warmed up and trained by self-play in two minutes on two CPU cores."""

    opponent: Literal["self", "start", "random", "minimax", "mixed"] = "self"
    """self: the policy plays both sides. start: the policy as it was in the beginning. mixed: perfect, but for a third of its moves. Against others it sits on either side."""
    rules: MatchRules = attrs.field(factory=MatchRules)
    """What happens beside the game's own rules."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=4))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Matches in a group, all from the empty board."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=5e-4, warmup_steps=3))
    """Peak, shape and warm-up. In self-play a policy that changes fast only learns to beat what it was a moment ago."""


BY_MODEL: dict[str, Any] = {**FOR_REAL_MODELS, "rules": MatchRules(retries=1, illegal_penalty=0.1)}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    module = "recipes.multiplayer_rl.tic_tac_toe"
    return await learn(config, ports, Lesson(module, partial(_example, config), partial(_games, config), context=64))


def _example(config: Config, number: int) -> Sequence[Message]:
    from engine.rendering import assistant, user
    from engine.runtime.seeds import derive_seed
    from envs.games.tic_tac_toe import example_turn

    board, answer = example_turn(random.Random(derive_seed(config.seed, 0, number)), knows=KNOWS)
    return [user(board), assistant(answer)]


@asynccontextmanager
async def _games(config: Config, opened: OpenedModel, _: Path) -> AsyncIterator[Games]:
    from engine.backends.values import SamplingParams
    from engine.runtime.seeds import derive_seed
    from engine.training.advantages import by_seat
    from envs.games.tic_tac_toe import groups

    async with frozen_completer(opened) as start:
        make = partial(
            groups,
            opened.renderer,
            rules=config.rules,
            terse=config.model == TINY,
            memory=config.model != TINY,
            model=start,
            params=SamplingParams(max_tokens=config.max_tokens),
        )
        named = "model" if config.opponent == "start" else config.opponent
        train = make(opponent=named, group_size=config.group_size, seed=derive_seed(config.seed, 1))
        fixed = partial(make, group_size=1, count=config.evaluation_games, seed=derive_seed(config.seed, 2))
        opponents = {"random": "random", "minimax": "minimax", "the start": "model"}
        yield Games(
            train,
            {f"against {name}": fixed(opponent=opponent) for name, opponent in opponents.items()},
            advantages=by_seat(2) if config.opponent == "self" else "centred",
        )


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=BY_MODEL))
