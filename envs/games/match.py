"""A match: one game, and the players who wait for each other at its table.

    seat 0 (a member of the group) ──turn, move──▶ ┌───────┐ ◀──turn, move── seat 1 (another member)
                                                   │ Match │
    seat 2 (an opponent: a function, a model) ◀────└───────┘

There is no task behind a match. Whoever makes the last move of a round drives the game on: plays the round, asks the opponents for their moves, until a
member is to move or the game is over; then it wakes those who wait. So nobody waits for ever, because who is waited for is always one of these:

- a driver: it is a member's own call, which returns, or raises, or is cancelled, and each of those wakes the others;
- a member that is to move: it moves, or `leave` is called when its episode ends in any other way (the rollout loop does), or its time for
  the move runs out.

A member that *fails* takes the group with it, as for all interdependent members; one that *leaves* ends the match, and the others learn from it what they won.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol

import anyio
import attrs

from engine.runtime.seeds import derive_seed
from envs.budgets import within
from envs.games.game import Game, IllegalMove, Move
from envs.together import together

Ending = Literal["over", "illegal", "too_slow", "left", "interrupted"]
"""over: by the game's rules. illegal: a player had no legal move left to try. too_slow: a player's time ran out. left: a player's episode ended at a limit of
the rollout. interrupted: whoever was driving was cancelled."""


@attrs.frozen
class MatchRules:
    """What happens beside the game's own rules."""

    retries: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """How often a player may try again, in one turn, after a move that is illegal or cannot be read."""
    illegal: Literal["lose", "random"] = "lose"
    """After the last try: lose the match, or have a random legal move made."""
    illegal_penalty: float = 0.0
    """Taken from the reward of a member for each illegal move, whatever becomes of the match."""
    leaving: Literal["lose", "draw"] = "lose"
    """A member whose episode ends at a limit (turns, tokens, context, seconds) when it is to move: loses, or the match is a draw. While it waits for others, it is
    always a draw."""
    move_seconds: float = attrs.field(default=600.0, validator=attrs.validators.gt(0))
    """Most seconds of one turn, tries included; then whoever is to move loses. An opponent that takes longer fails the group."""


@attrs.frozen
class Outcome:
    """How a match ended."""

    scores: tuple[float, ...]
    """The seats' scores, in their order."""
    ending: Ending
    culprits: tuple[int, ...] = ()
    """Seats that ended it otherwise than by the game's rules."""


class Player(Protocol):
    """Who plays one seat of one match and is not trained."""

    async def move(self, news: str) -> str:
        """Answers what the seat is shown."""
        ...


class Opponent(Protocol):
    """Makes players: one for each seat of each match."""

    def __call__(self, game: Game, seat: int, seed: int, /) -> Player: ...


async def _nothing() -> None:
    pass


class Match:
    """One game's table. `opponents` play the seats they are given for; the other seats are members', who call `turn` and `move` in turn."""

    def __init__(
        self,
        game: Game,
        *,
        opponents: Mapping[int, Opponent] | None = None,
        rules: MatchRules | None = None,
        seed: int = 0,
    ) -> None:
        self.game = game
        self.rules = rules or MatchRules()
        self.outcome: Outcome | None = None
        """None while the match goes on."""
        self.illegal = [0] * game.seats
        """Moves that were refused so far, by seat."""
        self._players = {
            seat: opponent(game, seat, derive_seed(seed, seat)) for seat, opponent in (opponents or {}).items()
        }
        self._random = random.Random(derive_seed(seed, game.seats))
        self._moves: dict[int, Move] = {}
        self._tries: dict[int, int] = {}
        self._begun = False
        self._driving = False
        self._asked_at = math.inf
        self._change = anyio.Event()

    @property
    def members(self) -> list[int]:
        """The seats that are not an opponent's."""
        return [seat for seat in range(self.game.seats) if seat not in self._players]

    # ---- members

    async def turn(self, seat: int) -> str | None:
        """Waits until the seat is to move; what it is shown then. None: the match is over."""
        if not self._begun:
            self._begun = True
            await self._drive(self.game.start)
        while self.outcome is None and not self._may_move(seat):
            await self._wait()
        return None if self.outcome is not None else self.game.news(seat)

    async def move(self, seat: int, text: str, *, unreadable: str = "") -> str | None:
        """Makes the seat's move. Gives the reason where it is refused and the player may try again, else None; what came of it, the next `turn` says.

        `unreadable`: why `text` is no answer at all. Raises RuntimeError for a seat that is not to move.
        """
        if self.outcome is not None:  # it ended while this player was thinking
            return None
        if not self._may_move(seat):
            raise RuntimeError(f"seat {seat} is not to move: call turn({seat}) first, and move once for each turn")
        if anyio.current_time() > self._asked_at + self.rules.move_seconds:
            self._end("too_slow", [seat])
            return None
        try:
            if unreadable:
                raise IllegalMove(unreadable)
            move = self.game.read(seat, text)
        except IllegalMove as error:
            self.illegal[seat] += 1
            self._tries[seat] = self._tries.get(seat, 0) + 1
            if self._tries[seat] <= self.rules.retries:
                return str(error)
            move = self._instead_of_illegal(seat)
        self._tries.pop(seat, None)
        if self.outcome is None:
            self._moves[seat] = move
            if not self._waited_for():
                await self._drive(_nothing)
        return None

    def leave(self, seat: int) -> float:
        """The seat's player will not move again. Ends the match where that player was still needed; gives the seat's score. Never raises."""
        if self.outcome is None:
            if self._begun and not self._driving and self.game.eliminated(seat):
                return self.game.forfeit([seat])[seat]
            at_fault = self.rules.leaving == "lose" and self._may_move(seat)
            self._end("left", [seat] if at_fault else [])
        return self.score(seat)

    def score(self, seat: int) -> float:
        """What the seat has won. Raises RuntimeError before the end."""
        if self.outcome is None:
            raise RuntimeError("the match is not over")
        return self.outcome.scores[seat]

    # ---- the game goes on

    def _may_move(self, seat: int) -> bool:
        return self._begun and not self._driving and seat not in self._moves and seat in self.game.acting()

    def _waited_for(self) -> list[int]:
        """Members that are to move and have not."""
        return [seat for seat in self.game.acting() if seat not in self._moves and seat not in self._players]

    async def _drive(self, first: Callable[[], Awaitable[None]]) -> None:
        """Plays on until members are to move or the match is over, and wakes whoever waits; whatever happens in between."""
        self._driving = True
        try:
            await first()
            while self.outcome is None and not await self._round():
                pass
        except BaseException:
            self._end("interrupted", [])
            raise
        finally:
            self._driving = False
            self._asked_at = anyio.current_time()
            self._wake()

    async def _round(self) -> bool:
        """Plays a round that waits for no member; whether that can be said of none now."""
        acting = self.game.acting()
        if not acting:
            self._end("over", scores=self.game.scores())
            return True
        if self._waited_for():
            return True
        asked = [seat for seat in acting if seat not in self._moves]
        answers = await together([functools.partial(self._ask, seat) for seat in asked])
        if self.outcome is not None:
            return True
        moves, self._moves = {**self._moves, **dict(zip(asked, answers, strict=True))}, {}
        await self.game.play(moves)
        return False

    async def _ask(self, seat: int) -> Move:
        """An opponent's move. Where it finds none, a random one is made for it, if the game lists them: won for nothing is nothing learnt."""
        player, news = self._players[seat], self.game.news(seat)
        with within(self.rules.move_seconds, "turn", f"the move of {type(player).__name__} at seat {seat}"):
            for _ in range(1 + self.rules.retries):
                try:
                    return self.game.read(seat, await player.move(news))
                except IllegalMove as error:
                    self.illegal[seat] += 1
                    news = str(error)
        return self._instead_of_illegal(seat, random_if_any=True)

    def _instead_of_illegal(self, seat: int, *, random_if_any: bool = False) -> Move:
        legal = self.game.legal_moves(seat) if random_if_any or self.rules.illegal == "random" else ()
        if legal:
            return self.game.read(seat, self._random.choice(legal))
        self._end("illegal", [seat])
        return None

    # ---- waiting and ending

    async def _wait(self) -> None:
        change, driving = self._change, self._driving
        deadline = math.inf if driving else self._asked_at + self.rules.move_seconds
        with anyio.CancelScope(deadline=deadline) as scope:
            await change.wait()
        # The clock and a move may come at the same moment: what has happened counts.
        if scope.cancelled_caught and change is self._change and not self._driving:
            self._end("too_slow", self._waited_for())

    def _wake(self) -> None:
        self._change.set()
        self._change = anyio.Event()

    def _end(self, ending: Ending, culprits: Sequence[int] = (), scores: Sequence[float] | None = None) -> None:
        if self.outcome is not None:  # the first reason counts
            return
        given = self.game.forfeit(culprits) if scores is None else scores
        if len(given) != self.game.seats or not all(math.isfinite(score) for score in given):
            raise ValueError(
                f"{type(self.game).__name__} gave the scores {list(given)}: it takes a finite one for each of {self.game.seats} seats"
            )
        self.outcome = Outcome(tuple(float(score) for score in given), ending, tuple(culprits))
        self._wake()
