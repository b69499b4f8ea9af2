"""The rules of a game, as a state that moves change. They know no model, no renderer and no clock: `envs.games.match` brings players to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Move = Any
"""What `read` makes of a player's words; the game's own affair."""


class IllegalMove(Exception):
    """What a player wrote is no move, or none that is allowed now. The message is told to the player."""


class Game(ABC):
    """One game, played once. Seats are numbered from 0.

    Moves alternate or are simultaneous as `acting` says: one seat at a time, or several that move without knowing of each other's moves.
    """

    seats: int = 2

    async def start(self) -> None:  # noqa: B027  (most games are ready when they are made)
        """Called once, before anything else."""

    @abstractmethod
    def acting(self) -> Sequence[int]:
        """The seats that are to move now; none: the game is over."""

    def rules(self, seat: int) -> str:  # noqa: ARG002
        """What a player is told first; may be empty."""
        return ""

    @abstractmethod
    def news(self, seat: int) -> str:
        """What the seat is shown when it is its turn. Asked once a turn, so a game may tell what has happened since it asked last."""

    @abstractmethod
    def read(self, seat: int, text: str) -> Move:
        """The move in a player's words. Raises IllegalMove. Whatever is written there: it must neither hang nor raise anything else."""

    @abstractmethod
    async def play(self, moves: Mapping[int, Move]) -> None:
        """Makes the moves of all acting seats."""

    @abstractmethod
    def scores(self) -> Sequence[float]:
        """What each seat has won, when the game is over."""

    def legal_moves(self, seat: int) -> Sequence[str]:  # noqa: ARG002
        """Everything that the seat could write now, where it can be listed: for random players."""
        return ()

    def forfeit(self, seats: Collection[int]) -> Sequence[float]:
        """The scores when these seats give up. A point is taken from each of them, and the others share what is taken: it stays zero-sum. Nobody's fault, or
        everybody's: a draw."""
        others = self.seats - len(seats)
        if not seats or not others:
            return [0.0] * self.seats
        return [-1.0 if seat in seats else len(seats) / others for seat in range(self.seats)]

    def eliminated(self, seat: int) -> bool:  # noqa: ARG002
        """Whether the seat will not move again although the game goes on."""
        return False

    def refused(self, seat: int) -> int:  # noqa: ARG002
        """Illegal moves of the seat that the game itself has judged in `play`, so far; those that `read` refuses are counted by the match."""
        return 0

    async def close(self) -> None:  # noqa: B027  (most games hold nothing)
        """Frees what `start` took. Called once, also when the game never ended."""
