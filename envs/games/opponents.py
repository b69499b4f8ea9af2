"""Fixed opponents: who plays the seats that are not trained. An `Opponent` makes a player for each seat of each match.

A model as opponent is any `Completer`: another policy, an older snapshot of the same one (`engine.completion.SnapshotPolicy`), a server.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

from engine.backends.values import SamplingParams
from engine.completion import Completer
from engine.rendering import Message, system, user
from engine.runtime.seeds import derive_seed
from envs.games.game import Game
from envs.games.match import Opponent, Player


@attrs.define
class RandomPlayer:
    """Any legal move, each with the same chance. The game must be able to list them."""

    game: Game
    seat: int
    seed: int
    _random: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def move(self, news: str) -> str:  # noqa: ARG002
        """Draws one."""
        moves = self.game.legal_moves(self.seat)
        if not moves:
            raise ValueError(f"{type(self.game).__name__} lists no legal moves, so a random player cannot play it")
        return moves[self._random.randrange(len(moves))]


@attrs.frozen
class scripted:  # noqa: N801  (used like a function)
    """Plays these moves in order, in every match. Raises ValueError when asked for one more."""

    moves: Sequence[str]

    def __call__(self, game: Game, seat: int, seed: int, /) -> Player:  # noqa: ARG002
        return _Scripted(list(self.moves))


@attrs.define
class _Scripted:
    left: list[str]

    async def move(self, news: str) -> str:  # noqa: ARG002
        if not self.left:
            raise ValueError("the scripted opponent has no move left")
        return self.left.pop(0)


@attrs.frozen
class mixed:  # noqa: N801
    """Plays as `other` does, but at a share `random` of the turns any legal move: an opponent that can be beaten sometimes."""

    other: Opponent
    random: float = attrs.field(validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])

    def __call__(self, game: Game, seat: int, seed: int, /) -> Player:
        other = self.other(game, seat, derive_seed(seed, 1))
        return _Mixed(other, RandomPlayer(game, seat, derive_seed(seed, 2)), self.random, random.Random(seed))


@attrs.define
class _Mixed:
    good: Player
    bad: Player
    share: float
    rng: random.Random

    async def move(self, news: str) -> str:
        return await (self.bad if self.rng.random() < self.share else self.good).move(news)


@attrs.frozen
class completer:  # noqa: N801
    """A model plays: it is told the rules and the news as a member is, and remembers its match."""

    model: Completer
    params: SamplingParams = attrs.field(factory=SamplingParams)
    system: str = ""
    memory: bool = True
    """Whether it sees earlier turns."""

    def __call__(self, game: Game, seat: int, seed: int, /) -> Player:
        opening = [system(self.system)] if self.system else []
        return _Model(self, game, seat, seed, opening)


@attrs.define
class _Model:
    how: completer
    game: Game
    seat: int
    seed: int
    opening: Sequence[Message]
    messages: list[Message] = attrs.field(factory=list)
    turns: int = 0

    async def move(self, news: str) -> str:
        if not self.messages or not self.how.memory:
            rules = self.game.rules(self.seat)
            self.messages = [*self.opening, user(f"{rules}\n\n{news}" if rules else news)]
        else:
            self.messages.append(user(news))
        seed = derive_seed(self.seed, self.turns)
        self.turns += 1
        reply = await self.how.model.complete(self.messages, params=self.how.params, seed=seed)
        self.messages.append(reply.message)
        return reply.text
