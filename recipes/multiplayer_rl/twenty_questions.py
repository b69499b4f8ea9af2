"""Reinforcement learning of twenty questions: the policy asks, another model answers.

    python -m recipes.multiplayer_rl.twenty_questions                                            # two minutes on two CPU cores; the answerer is a table
    python -m recipes.multiplayer_rl.twenty_questions --answerer.model smollm2                   # SmolLM2 answers
    python -m recipes.multiplayer_rl.twenty_questions --model Qwen/Qwen3-8B --backend tinker \\
        --answerer.model Qwen/Qwen3-8B --answerer.backend openai_compatible --answerer.base-url http://127.0.0.1:8000/v1

Without `--model`, a tiny Llama is made and warmed up on games about twelve things, of players few of whom know what to ask; the reward is 1 for naming the thing in time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from envs.games.twenty_questions import KnowingAnswerer, TwentyGroups, TwentyRules, conversation, example_game
from recipes import cli, runs
from recipes.models import TINY, ModelConfig, OpenedModel
from recipes.multiplayer_rl.learning import FOR_REAL_MODELS, GameConfig, Games, Lesson, learn
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult
    from engine.rendering import Message

TABLE = "table"
KNOWS = 0.2
"""Share of the example games whose player knows what to ask; the others ask and guess anything."""
FEW = ("dog", "eagle", "shark", "frog", "rose", "apple", "bread", "car", "boat", "lamp", "hammer", "hat")
"""What the tiny model learns to tell apart."""


@attrs.frozen(kw_only=True)
class AnswererConfig(ModelConfig):
    """Who answers."""

    model: str = TABLE
    """table (what envs.games.things says, no model), smollm2, or a Hugging Face causal language model by name or path."""
    threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """CPU threads; None: torch's choice."""


@attrs.frozen(kw_only=True)
class Config(GameConfig):
    """Reinforcement learning of twenty questions. Without flags: a tiny model is made, warmed up and trained in two minutes on two CPU cores."""

    answerer: AnswererConfig = attrs.field(factory=AnswererConfig)
    """Who answers."""
    game: TwentyRules = attrs.field(factory=lambda: TwentyRules(6, explain=False))
    """How many turns, what is won."""
    things: tuple[str, ...] = FEW
    """What is to be found."""
    steps: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    max_tokens: int = attrs.field(default=12, validator=attrs.validators.ge(1))
    """Longest question, in tokens."""

    def __attrs_post_init__(self) -> None:
        from envs.games.things import THINGS

        super().__attrs_post_init__()
        unknown = [thing for thing in self.things if thing not in THINGS]
        if unknown and self.answerer.model == TABLE:
            raise ValueError(f"things: the table knows nothing of {', '.join(unknown)}; a model may (--answerer.model)")
        if unknown and self.model == TINY:
            raise ValueError(f"things: the tiny model's example games know nothing of {', '.join(unknown)}")


BY_MODEL: dict[str, Any] = {
    **FOR_REAL_MODELS,
    "game": TwentyRules(20),
    "max_tokens": 32,
    "things": ("dog", "eagle", "shark", "rose", "apple", "bread", "car", "lamp", "hammer", "piano", "shirt", "moon"),
}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    module = "recipes.multiplayer_rl.twenty_questions"
    return await learn(config, ports, Lesson(module, partial(_example, config), partial(_games, config, ports)))


def _example(config: Config, number: int) -> Sequence[Message]:
    from engine.runtime.seeds import derive_seed

    rng = random.Random(derive_seed(config.seed, 0, number))
    return conversation(config.game.question(), example_game(config.things, config.game.turns, rng, knows=KNOWS))


@asynccontextmanager
async def _games(config: Config, ports: Ports, opened: OpenedModel, directory: Path) -> AsyncIterator[Games]:
    from engine.runtime.seeds import derive_seed

    async with AsyncExitStack() as stack:
        answerer: Any = KnowingAnswerer()
        if config.answerer.model != TABLE:
            answerer = await stack.enter_async_context(
                ports.open_completer(config.answerer, directory / "answerer", seed=config.seed)
            )
        train = TwentyGroups(
            opened.renderer, answerer, config.game, config.things, config.group_size, seed=derive_seed(config.seed, 1)
        )
        fixed = attrs.evolve(train, group_size=1, count=config.evaluation_games, seed=derive_seed(config.seed, 2))
        yield Games(train, {"every thing": fixed})


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=BY_MODEL))
