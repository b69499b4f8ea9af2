"""Reinforcement learning of the games of TextArena, by self-play or against others (`pip install 'callsheet[textarena]'`).

    python -m recipes.multiplayer_rl.textarena                                                      # Kuhn poker, a round a game; two minutes on two CPU cores
    python -m recipes.multiplayer_rl.textarena --game TicTacToe-v0 --options
    python -m recipes.multiplayer_rl.textarena --model smollm2 --game Nim-v0 --options 'piles=[1, 2, 3]' --evaluate-against-random False
    python -m recipes.multiplayer_rl.textarena --model smollm2 --game GuessTheNumber-v0 --options

Games of one player are simply played; in those of several, all are the policy unless `--opponent random` says otherwise. Without `--model`, a tiny Llama is made and warmed up on
games between players who draw any move that the game lists; games that list none need a model that speaks already.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from actors.schedule import Schedule
from envs.games.match import MatchRules
from recipes import cli, runs
from recipes.models import TINY, OpenedModel
from recipes.multiplayer_rl.learning import FOR_REAL_MODELS, GameConfig, Games, Lesson, learn
from recipes.play import parse_options
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Message

EXAMPLES = 400
"""Games that the tiny model is warmed up on, again and again."""


@attrs.frozen(kw_only=True)
class Config(GameConfig):
    """Reinforcement learning of a game of TextArena. Without flags: a tiny model is made, warmed up and trained by self-play at Kuhn poker in two minutes on two CPU cores."""

    game: str = "KuhnPoker-v0"
    """Its id in TextArena."""
    options: tuple[str, ...] = ("max_rounds=1",)
    """Options of the game's class, as name=value; values as JSON, or as text."""
    players: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """How many play; None: as many as usual."""
    opponent: Literal["self", "random"] = "self"
    """self: the policy plays all seats. random: it plays one, and the others draw any move that the game lists."""
    evaluate_against_random: bool = True
    """Evaluate it against players who draw any move that the game lists."""
    memory: bool = True
    """Whether a player sees earlier turns."""
    workers: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Processes that play the games."""
    rules: MatchRules = attrs.field(factory=MatchRules)
    """What happens beside the game's own rules."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=16))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Matches in a group, all from the same start."""
    steps: int = attrs.field(default=25, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    warm_up: int = attrs.field(default=100, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes, on games of players who draw any move."""
    max_tokens: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""


BY_MODEL: dict[str, Any] = {**FOR_REAL_MODELS, "max_tokens": 64}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    examples = await _examples(config) if config.model == TINY else []
    lesson = Lesson(
        "recipes.multiplayer_rl.textarena",
        lambda number: examples[number % len(examples)],
        partial(_games, config),
        context=512,
        vocabulary=2048,
    )
    return await learn(config, ports, lesson)


async def _examples(config: Config) -> Sequence[Sequence[Message]]:
    from engine.rendering import assistant, user
    from envs.games.arena import example_games

    games = await example_games(
        config.game, EXAMPLES, players=config.players, options=parse_options(config.options), seed=config.seed
    )
    return [[message for told, said in game for message in (user(told), assistant(said))] for game in games]


@asynccontextmanager
async def _games(config: Config, opened: OpenedModel, _: Path) -> AsyncIterator[Games]:
    from engine.runtime import WorkerPool
    from engine.runtime.seeds import derive_seed
    from engine.training.advantages import by_seat
    from envs.games.arena import groups, require_textarena

    require_textarena()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(WorkerPool(config.workers, preload=("textarena",)))
        open_games = partial(
            groups,
            opened.renderer,
            game=config.game,
            players=config.players,
            options=parse_options(config.options),
            memory=config.memory,
            rules=config.rules,
            pool=pool,
        )
        train = await stack.enter_async_context(
            open_games(opponent=config.opponent, group_size=config.group_size, seed=derive_seed(config.seed, 1))
        )
        evaluations = {}
        if train.seats > 1 and config.evaluate_against_random:
            evaluations["against random"] = await stack.enter_async_context(
                open_games(
                    opponent="random", group_size=1, count=config.evaluation_games, seed=derive_seed(config.seed, 2)
                )
            )
        yield Games(train, evaluations, by_seat(train.seats) if config.opponent == "self" else "centred")


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=BY_MODEL))
