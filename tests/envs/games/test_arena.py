"""TextArena's games: seeded, off the event loop, and nothing a model writes can crash or hang a match."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends import SampleRequest, SamplingParams
from engine.runtime.processes import WorkerPool
from engine.training.trajectories import TrajectoryGroup
from envs import conformance
from envs.contracts import GroupDataset
from envs.games import arena, arena_worker
from envs.games.arena import ArenaGame, ArenaGameFailed, players_of
from envs.games.arena_worker import ArenaError, ArenaSpec, advance
from envs.games.match import MatchRules
from envs.games.seats import MatchGroups
from envs.registry import open_env
from envs.rollout import FailFast, RolloutLimits, RolloutSettings, play_group
from tests.envs.games.tables import RENDERER, Speaker

pytest.importorskip("textarena")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TextArena, where it is imported here
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The real clock: these games are played in processes. One event loop for all, so that they can share these."""
    return "asyncio"


@pytest.fixture(scope="module")
async def pool() -> AsyncIterator[WorkerPool]:
    """A worker that has imported TextArena, which takes a second."""
    async with WorkerPool(1, spares=0, preload=("textarena",)) as opened:
        yield opened


async def played(groups: MatchGroups, says: Callable[[str, SampleRequest], str], index: int = 0) -> TrajectoryGroup:
    settings = RolloutSettings(SamplingParams(max_tokens=64), RolloutLimits(max_turns=80), FailFast())
    with anyio.fail_after(60):
        return await play_group(groups[index], Speaker(says, lambda request: 0.0), settings, 1)


def any_listed(prompt: str, request: SampleRequest) -> str:
    """One of the moves that the game lists."""
    listed = prompt.rsplit("Available Moves:", 1)[-1].split("\n\n", maxsplit=1)[0].replace("'", "").split(", ")
    return random.Random(request.seed).choice(listed)


# ---- what runs in the worker


def spec(game: str, players: int = 2, seed: int = 1, **options: Any) -> ArenaSpec:
    return ArenaSpec(game, players, seed, options)


def test_a_game_is_the_same_however_its_moves_come_to_the_worker() -> None:
    """Move by move in memory, and from the start by a worker that has never seen it."""
    moves = ("[4]", "[0]", "[8]", "[2]", "[6]")
    steps = [advance(spec("TicTacToe-v0"), moves[:count]) for count in range(len(moves) + 1)]
    arena_worker._live.clear()
    assert advance(spec("TicTacToe-v0"), moves) == steps[-1]
    assert [step.player for step in steps] == [0, 1, 0, 1, 0, 1]
    prompt, board = steps[0].heard[0], steps[0].heard[-1]
    assert (prompt.kind, board.kind) == ("prompt", "game_board")
    assert "Available Moves" in board.text
    assert all("Player 1" not in heard.sender for heard in steps[2].heard[:0])
    assert [heard.sender for heard in steps[1].heard if heard.kind == "player_action"] == ["Player 0"]


def test_randomness_is_the_games_own() -> None:
    """Games that draw while they are played, interleaved in any order, and the process's own generators are as they were."""
    alone = {}
    for seed in (1, 2, 3):
        arena_worker._live.clear()
        alone[seed] = [advance(spec("PigDice-v0", seed=seed), ("[roll]",) * count) for count in range(6)]
    assert len({str(game) for game in alone.values()}) > 1
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    arena_worker._live.clear()
    beside: dict[int, list[Any]] = {1: [], 2: [], 3: []}
    for count in range(6):
        for seed in (3, 1, 2):
            beside[seed].append(advance(spec("PigDice-v0", seed=seed), ("[roll]",) * count))
    assert beside == alone
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_the_worker_remembers_a_bounded_number_of_games(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_worker, "MOST_GAMES", 3)
    arena_worker._live.clear()
    for seed in range(10):
        advance(spec("TicTacToe-v0", seed=seed), ())
    assert len(arena_worker._live) == 3


def test_illegal_moves_are_counted_and_a_refusal_told() -> None:
    once = advance(spec("TicTacToe-v0"), ("nonsense",))
    assert (once.player, once.illegal) == (0, (1, 0))
    assert "invalid move" in once.heard[0].text
    twice = advance(spec("TicTacToe-v0"), ("nonsense", "[99]"))
    assert (twice.player, twice.rewards, twice.illegal) == (None, (-1.0, 1.0), (2, 0))


def test_a_refusal_that_the_game_mixes_up_with_its_reward_is_a_loss() -> None:
    end = advance(spec("Countdown-v0", players=1), ("?", "?"))
    assert end.rewards == (-1.0,)


def test_options_reach_the_games_class() -> None:
    position = advance(spec("Nim-v0", piles=[1, 0, 0]), ())
    assert "pile 0: 1" in position.heard[-1].text
    assert advance(spec("Nim-v0", piles=[1, 0, 0]), ("[0 1]",)).rewards == (1.0, -1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (spec("TicTacTo-v0"), r"has no game 'TicTacTo-v0'; did you mean TicTacToe-v0"),
        (spec("TicTacToe-v0", players=5), r"cannot be begun with 5 player\(s\).*has to be 2"),
        (spec("TicTacToe-v0", wrong=1), r"options \{'wrong': 1\}"),
        (spec("Chess-v0"), "Chess-v0 cannot be played here"),
    ],
)
def test_what_cannot_be_begun_is_said(bad: ArenaSpec, message: str) -> None:
    if sys.version_info >= (3, 12) and bad.game == "Chess-v0":
        pytest.skip("it parses there")
    with pytest.raises(ArenaError, match=message):
        advance(bad, ())


class Crashing:
    """A game whose own code breaks, or does not come back, on some moves."""

    def __init__(self) -> None:
        self.state = types.SimpleNamespace(
            done=False, role_mapping={}, error_count=0, game_info={}, rewards=None, elimination_order=[]
        )

    def reset(self, num_players: int, seed: int) -> None:
        pass

    def get_observation(self) -> tuple[int, list[Any]]:
        return 0, []

    def step(self, action: str) -> None:
        if action == "crash":
            raise IndexError("list index out of range")
        while action == "hang":
            pass


def test_a_move_over_which_the_game_crashes_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    import textarena

    monkeypatch.setattr(textarena, "make", lambda *args, **options: Crashing())
    arena_worker._live.clear()
    end = advance(spec("TicTacToe-v0"), ("go", "crash"))
    assert (end.player, end.rewards, end.illegal) == (None, (-1.0, 1.0), (1, 0))
    assert end.broken == "IndexError: list index out of range"
    arena_worker._live.clear()


# ---- matches


async def test_self_play_in_a_worker_process() -> None:
    async with open_env("textarena", RENDERER, group_size=3, seed=2) as groups:
        assert isinstance(groups, MatchGroups)
        group = await played(groups, any_listed)
        assert len(group.trajectories) == 6
        assert group.rewards_G.sum() == 0
        assert group.tags == ("TicTacToe-v0", "self_play")
        first = group.trajectories[0].turns[0].logs["question"]
        assert first.startswith("You are Player 0 in Tic Tac Toe.")
        assert "Available Moves" in first
        again = await played(groups, any_listed)
        assert again.rewards_G.tolist() == group.rewards_G.tolist()


async def test_one_player_three_players_opponents_and_a_limit_of_moves() -> None:
    async with WorkerPool(1, spares=0) as pool:
        async with open_env("textarena", RENDERER, pool=pool, group_size=2, game="GuessTheNumber-v0") as groups:
            group = await played(groups, lambda prompt, request: "[7]")
            assert len(group.trajectories) == 2
            assert all(len(member.turns) >= 1 for member in group.trajectories)
        async with open_env("textarena", RENDERER, pool=pool, group_size=1, game="ThreePlayerIPD-v0") as groups:
            group = await played(groups, lambda prompt, request: "[1 cooperate] [2 defect]")
            assert len(group.trajectories) == 3
        async with open_env("textarena", RENDERER, pool=pool, group_size=2, opponent="random", seat=1) as groups:
            group = await played(groups, any_listed)
            assert group.tags == ("TicTacToe-v0", "vs_random", "seat_1")
            assert {turn.logs["seat"] for member in group.trajectories for turn in member.turns} == {1}
        async with open_env("textarena", RENDERER, pool=pool, group_size=1, most_moves=3) as groups:
            group = await played(groups, any_listed)
            assert group.rewards_G.tolist() == [0.0, 0.0]
            assert sum(len(member.turns) for member in group.trajectories) == 3
        for options, message in (
            ({"game": "Nimm-v0"}, "no game 'Nimm-v0'"),
            ({"players": 7}, r"7 player\(s\)"),
        ):
            with pytest.raises(ArenaGameFailed, match=message):
                async with open_env("textarena", RENDERER, pool=pool, **options):
                    pass


async def test_a_game_that_does_not_come_back_loses_for_whoever_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WorkerPool(1, spares=0) as pool:

        class Hanging(ArenaGame):
            async def play(self, moves: Mapping[int, str]) -> None:
                self._budget = 0.05 if next(iter(moves.values())) == "[8]" else 10.0
                await super().play(moves)

        game = Hanging(pool, spec("TicTacToe-v0"))
        await game.start()
        await game.play({0: "[4]"})
        monkeypatch.setattr(arena, "advance", sleeps)
        await game.play({1: "[8]"})
        assert game.acting() == ()
        assert list(game.scores()) == [1.0, -1.0]
        assert game.refused(1) == 1
        assert game.broken == "the game did not come back"


def sleeps(spec: ArenaSpec, moves: tuple[str, ...]) -> None:
    import time

    time.sleep(30)


async def test_what_cannot_be_opened_is_said_before_anything_is_played() -> None:
    for options, message in (
        ({"opponent": "minimax"}, "no opponent is called 'minimax'"),
        ({"opponent": "model"}, "needs a model"),
    ):
        with pytest.raises(ValueError, match=message):
            async with open_env("textarena", RENDERER, **options):
                pass


def test_how_many_play() -> None:
    assert [players_of(game) for game in ("Nim-v0", "Sudoku-v0-easy", "ThreePlayerIPD-v0", "New-v0")] == [2, 1, 3, 2]


OWN_WORKERS = ("played_groups_leave_nothing", "cancelled_groups_leave_nothing")
"""Checks of what is left behind, for which the games have workers of their own."""


def subject(pool: WorkerPool | None) -> conformance.Subject:
    @asynccontextmanager
    async def opened() -> AsyncIterator[GroupDataset]:
        async with open_env(
            "textarena", RENDERER, group_size=1, game="Nim-v0", rules=MatchRules(), pool=pool
        ) as groups:
            yield groups

    return conformance.Subject(
        opened,
        RENDERER,
        ["[0 1]", "[1 2]", "[2 1]", "[2 5]"],
        max_turns=20,
        problems=(0,),
        cancellations=3,
        patience=60.0,  # a killed worker is replaced by one that imports TextArena first
        optional_metrics=frozenset({"seat_0/score", "seat_1/score"}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check, pool: WorkerPool) -> None:
    under_test = subject(None if check.__name__ in OWN_WORKERS else pool)
    if reason := conformance.gap(check, under_test):
        pytest.skip(reason)
    await check(under_test)


OFFLINE: Sequence[str] = [
    "Alquerque-v0",
    "Briscola-v0",
    "Chopsticks-v0",
    "ConnectFour-v0",
    "KuhnPoker-v0",
    "Nim-v0",
    "PigDice-v0",
    "Poker-v0",
    "SecretMafia-v0",
    "Sokoban-v0",
    "TowerOfHanoi-v0",
]


@pytest.mark.slow
@pytest.mark.parametrize("game", OFFLINE)
async def test_many_games_can_be_played_to_their_end(game: str, pool: WorkerPool) -> None:
    async with open_env("textarena", RENDERER, group_size=1, game=game, most_moves=60, pool=pool) as groups:
        group = await played(groups, lambda prompt, request: ["[0]", "[1 1]", "hello"][request.seed % 3])
        assert np.isfinite(group.rewards_G).all()
