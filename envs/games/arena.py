"""The games of TextArena (`pip install 'callsheet[textarena]'`), for one player or several, against itself or fixed opponents.

Its games are ordinary blocking Python that draws from global generators: they are played in worker processes (`envs.games.arena_worker`), each move within a budget of
seconds. A move over which a game crashes or does not come back loses, so that no policy can learn to escape a lost game that way.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from engine.backends.values import SamplingParams
from engine.completion import Completer
from engine.rendering import Renderer
from engine.runtime.jobs import BudgetExceeded, JobFailed
from engine.runtime.processes import WorkerPool
from engine.runtime.seeds import derive_seed
from envs.games.arena_worker import ArenaSpec, Heard, Position, advance
from envs.games.game import Game
from envs.games.match import MatchRules, Opponent
from envs.games.opponents import RandomPlayer, completer
from envs.games.seats import MatchGroups, SeatOptions

LONGEST = 4000
"""Characters of a move that are passed on."""

ONE_PLAYER = frozenset(
    [
        "2048",
        "BabyAiText",
        "Bandit",
        "Blackjack",
        "Countdown",
        "Crosswords",
        "Cryptarithm",
        "FifteenPuzzle",
        "FrozenLake",
        "GuessTheNumber",
        "GuessWho",
        "Hangman",
        "Klondike",
        "LightsOut",
        "LogicPuzzle",
        "Mastermind",
        "Minesweeper",
        "PegJump",
        "RushHour",
        "Secretary",
        "Set",
        "Slitherlink",
        "Sokoban",
        "Sudoku",
        "ThreeCardMonte",
        "TowerOfHanoi",
        "TwentyQuestions",
        "UltimateTexasHoldem",
        "WordLadder",
        "WordSearch",
        "Wordle",
    ]
)
MORE_PLAYERS: Mapping[str, int] = {
    "CharacterConclave": 3,
    "Codenames": 4,
    "MarketEntryGame": 3,
    "PublicGoodsGame": 3,
    "SecretMafia": 6,
    "SettlersOfCatan": 4,
    "Taboo": 4,
    "ThreePlayerGOPS": 3,
    "ThreePlayerIPD": 3,
    "ThreePlayerTicTacToe": 3,
}
"""By a game's name; all others are for two, or may be played by two."""

_LISTED = re.compile(
    r"(?:available|valid|legal|possible) (?:moves|actions|cells|columns|squares)[^\n:]*:([^\n]*(?:\n[^\n]*)?)",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\[[^\[\]\n]+\]")


class ArenaGameFailed(RuntimeError):
    """A game could not be begun. The message is TextArena's, or says what is missing."""


def players_of(game: str) -> int:
    """How many play a game, unless one says otherwise."""
    name = game.partition("-")[0]
    return 1 if name in ONE_PLAYER else MORE_PLAYERS.get(name, 2)


class ArenaGame(Game):
    """One game in a worker process."""

    def __init__(self, pool: WorkerPool, spec: ArenaSpec, *, move_budget: float = 10.0, most_moves: int = 200) -> None:
        """`move_budget`: seconds that the game may compute over a move. `most_moves`: after so many, by all players together, it is a draw."""
        self.seats = spec.players
        self.spec = spec
        self._pool = pool
        self._budget = move_budget
        self._most = most_moves
        self._moves: tuple[str, ...] = ()
        self._position = Position(None)
        self._rules: dict[int, list[str]] = {}
        self._news: dict[int, str] = {}

    async def start(self) -> None:
        """Begins it. Raises ArenaGameFailed."""
        try:
            self._take(await self._pool.run(advance, self.spec, (), budget=self._budget * 3))
        except JobFailed as error:
            raise ArenaGameFailed(error.message) from None
        except BudgetExceeded as error:
            raise ArenaGameFailed(f"{self.spec.game} did not begin within {self._budget * 3:g} s") from error

    def acting(self) -> Sequence[int]:
        """TextArena asks one player at a time, also where moves are simultaneous: nobody sees the others' before all have moved."""
        player = self._position.player
        return () if player is None or len(self._moves) >= self._most else (player,)

    def rules(self, seat: int) -> str:
        """What the game tells each player first."""
        return "\n".join(self._rules.get(seat, []))

    def news(self, seat: int) -> str:
        """What the player has been told since it moved last."""
        return self._news.get(seat, "")

    def read(self, seat: int, text: str) -> str:  # noqa: ARG002
        """The words as they are: the game itself reads them, and refuses them."""
        return text.strip()[:LONGEST]

    async def play(self, moves: Mapping[int, str]) -> None:
        """Makes the move."""
        ((seat, move),) = moves.items()
        self._moves = (*self._moves, move)
        try:
            self._take(await self._pool.run(advance, self.spec, self._moves, budget=self._budget))
        except BudgetExceeded:
            illegal = [count + (player == seat) for player, count in enumerate(self._position.illegal)]
            lost = tuple(self.forfeit([seat]))
            self._position = Position(None, rewards=lost, illegal=tuple(illegal), broken="the game did not come back")

    def scores(self) -> Sequence[float]:
        """TextArena's rewards; a draw where the game did not end in time."""
        return self._position.rewards or [0.0] * self.seats

    def legal_moves(self, seat: int) -> Sequence[str]:
        """Those that the game lists in what it shows, where it does."""
        listed = _LISTED.findall(self.news(seat))
        return list(dict.fromkeys(_BRACKETS.findall(listed[-1]))) if listed else ()

    def eliminated(self, seat: int) -> bool:
        """As TextArena counts it."""
        return seat in self._position.out

    def refused(self, seat: int) -> int:
        """Moves that the game did not take."""
        return self._position.illegal[seat] if seat < len(self._position.illegal) else 0

    @property
    def broken(self) -> str:
        """What went wrong inside the game, where it ended by that."""
        return self._position.broken

    def _take(self, position: Position) -> None:
        self._position = position
        if position.player is None:
            return
        prompts = [heard.text for heard in position.heard if heard.kind == "prompt"]
        self._rules.setdefault(position.player, []).extend(prompts)
        self._news[position.player] = "\n".join(_line(heard) for heard in position.heard if heard.kind != "prompt")


def _line(heard: Heard) -> str:
    return f"[{heard.sender}] {heard.text}"


@asynccontextmanager
async def groups(
    renderer: Renderer,
    *,
    group_size: int = 4,
    seed: int = 0,
    game: str = "TicTacToe-v0",
    players: int | None = None,
    options: Mapping[str, Any] | None = None,
    opponent: str = "self",
    model: Completer | None = None,
    params: SamplingParams | None = None,
    seat: int | None = None,
    memory: bool = True,
    rules: MatchRules | None = None,
    move_budget: float = 10.0,
    most_moves: int = 200,
    workers: int = 1,
    pool: WorkerPool | None = None,
    count: int = 100_000,
) -> AsyncIterator[MatchGroups]:
    """What `envs.registry` opens as "textarena": groups of `group_size` matches of one game, while its worker processes run.

    `pool`: workers that run already, to be shared; None: as many `workers` of their own. `opponent`: self, random (for games that list the legal moves) or model (the completer). `options`: keywords of the game's class. Raises ArenaGameFailed where
    the game cannot be played.
    """
    require_textarena()
    seats = players or players_of(game)
    other = _opponent(opponent, model, params)
    async with nullcontext(pool) if pool is not None else WorkerPool(workers, preload=("textarena",)) as running:

        def make_game(problem_seed: int) -> ArenaGame:
            spec = ArenaSpec(game, seats, problem_seed, dict(options or {}))
            return ArenaGame(running, spec, move_budget=move_budget, most_moves=most_moves)

        await make_game(seed).start()
        yield MatchGroups(
            name=game,
            renderer=renderer,
            make_game=make_game,
            seats=seats,
            matches=group_size,
            opponent=other,
            opponent_name="self_play" if opponent == "self" and seats > 1 else f"vs_{opponent}",
            seat=seat,
            rules=rules,
            options=SeatOptions(memory=memory),
            count=count,
            seed=seed,
        )


def require_textarena() -> None:
    """Raises ImportError saying what to install."""
    if importlib.util.find_spec("textarena") is None:
        raise ImportError("TextArena is not installed: pip install 'callsheet[textarena]'")


async def example_games(
    game: str, count: int, *, players: int | None = None, options: Mapping[str, Any] | None = None, seed: int = 0
) -> list[list[tuple[str, str]]]:
    """Games between players who draw any of the moves that the game lists: for each player of each of `count` games, (what it was told, what it answered) by turn.

    Raises ArenaGameFailed where the game cannot be played, or lists no moves.
    """
    require_textarena()
    seats = players or players_of(game)
    found: list[list[tuple[str, str]]] = []
    async with WorkerPool(1, spares=0, preload=("textarena",)) as pool:
        for number in range(count):
            rng = random.Random(derive_seed(seed, number))
            playing = ArenaGame(pool, ArenaSpec(game, seats, rng.getrandbits(62), dict(options or {})))
            await playing.start()
            turns: list[list[tuple[str, str]]] = [[] for _ in range(seats)]
            while playing.acting():
                (seat,) = playing.acting()
                moves = playing.legal_moves(seat)
                if not moves:
                    raise ArenaGameFailed(f"{game} does not list the moves there are, so no examples can be made of it")
                told = f"{playing.rules(seat)}\n\n{playing.news(seat)}" if not turns[seat] else playing.news(seat)
                move = rng.choice(moves)
                turns[seat].append((told, move))
                await playing.play({seat: move})
            found += [turn for turn in turns if turn]
    return found


def _opponent(name: str, model: Completer | None, params: SamplingParams | None) -> Opponent | None:
    if name == "self":
        return None
    if name == "random":
        return RandomPlayer
    if name != "model":
        raise ValueError(f"no opponent is called {name!r}; there are self, random, model")
    if model is None:
        raise ValueError("the opponent 'model' needs a model: give a completer")
    return completer(model, params or SamplingParams(max_tokens=128))
