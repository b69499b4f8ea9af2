"""Tic-tac-toe on a board of nine numbered squares, and its perfect player.

X | 2 | 3
4 | O | 6
7 | 8 | 9
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence

import attrs

from engine.backends.values import SamplingParams
from engine.completion import Completer
from engine.rendering import Renderer
from envs.games.game import Game, IllegalMove
from envs.games.match import MatchRules, Opponent
from envs.games.opponents import RandomPlayer, completer, mixed
from envs.games.seats import MatchGroups, SeatOptions

MARKS = "XO"
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
EMPTY = "." * 9
_SQUARE = re.compile(r"(?<![0-9])[1-9](?![0-9])")


def winner(board: str) -> int | None:
    """The seat that has three in a row on a board of nine characters; None: nobody yet."""
    for a, b, c in LINES:
        if board[a] != "." and board[a] == board[b] == board[c]:
            return MARKS.index(board[a])
    return None


def to_move(board: str) -> int:
    """The seat whose turn it is: X, seat 0, begins."""
    return (9 - board.count(".")) % 2


def free(board: str) -> list[int]:
    """The empty squares, from 0."""
    return [square for square, mark in enumerate(board) if mark == "."]


def put(board: str, square: int) -> str:
    """The board with the mark of whoever is to move on a square."""
    return board[:square] + MARKS[to_move(board)] + board[square + 1 :]


@functools.cache
def value(board: str) -> int:
    """What the seat to move gets when both play perfectly: 1, 0 or -1."""
    if winner(board) is not None:
        return -1  # the other one has just won
    squares = free(board)
    return max((-value(put(board, square)) for square in squares), default=0)


def best_moves(board: str) -> list[int]:
    """The squares that keep the value of the position."""
    return [square for square in free(board) if -value(put(board, square)) == value(board)]


class TicTacToe(Game):
    """Seat 0 is X and begins. Scores: 1 and -1, or 0 each."""

    seats = 2

    def __init__(self, board: str = EMPTY, *, terse: bool = False) -> None:
        """`board`: nine characters of X, O and a dot, from which the game goes on. `terse`: shows the numbers of the free squares, one's own and the other's, and no word
        more, for models that speak no language."""
        if len(board) != 9 or set(board) - set("XO.") or board.count("X") - board.count("O") not in (0, 1):
            raise ValueError(f"{board!r} is no tic-tac-toe board: nine of X, O and ., as many X as O or one more")
        self.board = board
        self._terse = terse

    def acting(self) -> Sequence[int]:
        """Whoever is to move; nobody when it is won or full."""
        return () if winner(self.board) is not None or "." not in self.board else (to_move(self.board),)

    def rules(self, seat: int) -> str:
        """Told before the first position."""
        if self._terse:
            return ""
        return (
            f"You play tic-tac-toe as {MARKS[seat]} against {MARKS[1 - seat]}. The squares are numbered 1 to 9, row by row. Three in a row win: across, down or "
            "along a diagonal. Answer with the number of a free square, and nothing else."
        )

    def news(self, seat: int) -> str:
        """The board: free squares as numbers."""
        if self._terse:
            return terse(self.board, seat)
        shown = [mark if mark != "." else str(square + 1) for square, mark in enumerate(self.board)]
        return "\n".join(" | ".join(shown[row : row + 3]) for row in (0, 3, 6))

    def read(self, seat: int, text: str) -> int:  # noqa: ARG002
        """The only number from 1 to 9 in the text, as a square from 0."""
        found = set(_SQUARE.findall(text[:2000]))
        if len(found) != 1:
            raise IllegalMove(f"Answer with one number from 1 to 9, not {'several' if found else 'none'}.")
        square = int(found.pop()) - 1
        if self.board[square] != ".":
            raise IllegalMove(f"Square {square + 1} is taken.")
        return square

    async def play(self, moves: Mapping[int, int]) -> None:
        """Puts the mark."""
        ((_, square),) = moves.items()
        self.board = put(self.board, square)

    def scores(self) -> Sequence[float]:
        """1 for three in a row, -1 for the other."""
        won = winner(self.board)
        return [0.0, 0.0] if won is None else [1.0 if seat == won else -1.0 for seat in range(2)]

    def legal_moves(self, seat: int) -> Sequence[str]:  # noqa: ARG002
        """The free squares' numbers."""
        return [str(square + 1) for square in free(self.board)]


def terse(board: str, seat: int) -> str:
    """The squares as the seat sees them: free ones, its own, the other's; `2345678 1 9`, with a dash for none."""
    return " ".join(
        "".join(str(square + 1) for square in range(9) if board[square] == mark) or "-"
        for mark in (".", MARKS[seat], MARKS[1 - seat])
    )


def example_turn(rng: random.Random, *, knows: float) -> tuple[str, str]:
    """A position out of a game, as the player to move sees it (`terse`), and its answer: at a share `knows` a perfect move, else any free square."""
    while True:
        board = EMPTY
        for _ in range(rng.randrange(9)):
            if winner(board) is None and "." in board:
                board = put(board, rng.choice(best_moves(board) if rng.random() < 0.5 else free(board)))
        if winner(board) is None and "." in board:
            squares = best_moves(board) if rng.random() < knows else free(board)
            return terse(board, to_move(board)), str(rng.choice(squares) + 1)


@attrs.define
class Minimax:
    """Plays perfectly; among equally good squares, any."""

    game: Game
    seat: int
    seed: int
    _random: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def move(self, news: str) -> str:  # noqa: ARG002
        """A square that keeps the value of the position."""
        if not isinstance(self.game, TicTacToe):
            raise TypeError(f"this player knows tic-tac-toe, not {type(self.game).__name__}")
        squares = best_moves(self.game.board)
        return str(squares[self._random.randrange(len(squares))] + 1)


def opponent_named(
    name: str, model: Completer | None = None, params: SamplingParams | None = None, *, memory: bool = True
) -> Opponent | None:
    """self: None. random, minimax, and mixed (minimax that draws every third move at random). model: the completer, which must be given."""
    known: dict[str, Opponent] = {"random": RandomPlayer, "minimax": Minimax, "mixed": mixed(Minimax, 1 / 3)}
    if name == "self":
        return None
    if name == "model":
        if model is None:
            raise ValueError("the opponent 'model' needs a model: give a completer")
        return completer(model, params or SamplingParams(max_tokens=16), memory=memory)
    if name not in known:
        raise ValueError(f"no opponent is called {name!r}; there are self, model, {', '.join(known)}")
    return known[name]


def groups(
    renderer: Renderer,
    *,
    group_size: int = 4,
    seed: int = 0,
    opponent: str = "self",
    model: Completer | None = None,
    params: SamplingParams | None = None,
    seat: int | None = None,
    terse: bool = False,
    memory: bool = True,
    rules: MatchRules | None = None,
    max_tokens: int | None = None,
    count: int = 100_000,
) -> MatchGroups:
    """What `envs.registry` opens as "tic_tac_toe": `group_size` matches in a group, each with one member, or with two in self-play."""
    return MatchGroups(
        name="tic_tac_toe",
        renderer=renderer,
        make_game=lambda _: TicTacToe(terse=terse),
        matches=group_size,
        opponent=opponent_named(opponent, model, params, memory=memory),
        opponent_name="self_play" if opponent == "self" else f"vs_{opponent}",
        seat=seat,
        rules=rules,
        options=SeatOptions(memory=memory, max_tokens=max_tokens),
        count=count,
        seed=seed,
    )
