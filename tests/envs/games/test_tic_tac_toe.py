"""Tic-tac-toe: the rules against a second implementation, the perfect player against everything, self-play at length."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from actors import RLSettings, RunResult, Schedule, train_rl
from actors.sampler import SamplerSettings
from engine.backends import SampleRequest, SamplingParams
from engine.backends.simulated import Draw, Failures, LogNormal, SamplerModel, SimulatedBackend, TrainerModel
from engine.runtime.seeds import derive_seed
from engine.runtime.simulation import SimulationReport, simulate
from engine.training.advantages import by_seat
from envs.games import tic_tac_toe as ttt
from envs.games.game import IllegalMove
from envs.games.match import MatchRules
from envs.games.tic_tac_toe import EMPTY, TicTacToe
from envs.rollout import Retry, RolloutLimits, RolloutSettings, play_group
from tests.envs.games.tables import RENDERER, TOKENIZER, Speaker
from tests.thoroughness import THOROUGH

MANY = 1000 if THOROUGH else 240


def lines() -> Iterator[tuple[int, ...]]:
    """Three in a row, by arithmetic on rows and columns."""
    for squares in itertools.combinations(range(9), 3):
        rows, columns = {s // 3 for s in squares}, {s % 3 for s in squares}
        if len(rows) == 1 or len(columns) == 1 or squares in ((0, 4, 8), (2, 4, 6)):
            yield squares


def test_winning_lines() -> None:
    assert {tuple(sorted(line)) for line in ttt.LINES} == set(lines())


def plain_value(board: str) -> int:
    """For X; the textbook's recursion, nothing remembered."""
    for mark, worth in (("X", 1), ("O", -1)):
        if any(all(board[s] == mark for s in line) for line in lines()):
            return worth
    free = [s for s in range(9) if board[s] == "."]
    if not free:
        return 0
    mark = "X" if len(free) % 2 else "O"
    values = [plain_value(board[:s] + mark + board[s + 1 :]) for s in free]
    return max(values) if mark == "X" else min(values)


@pytest.mark.parametrize("board", ["X...O...X", "XOX......", "X.O.X....", "XXOO.....", "....X....", "O.XX....O"])
def test_the_value_of_positions(board: str) -> None:
    sign = 1 if ttt.to_move(board) == 0 else -1
    if board.count(".") <= 7:
        assert sign * ttt.value(board) == plain_value(board)
    for square in ttt.best_moves(board):
        assert ttt.value(ttt.put(board, square)) == -ttt.value(board)


def test_perfect_play_is_a_draw_and_never_loses_to_anybody() -> None:
    assert ttt.value(EMPTY) == 0
    assert len(ttt.best_moves(EMPTY)) == 9
    assert ttt.best_moves("X........") == [4]  # against a corner only the centre holds

    def worst(board: str, mine: int) -> int:
        """The worst that can happen to the seat that plays best moves, whatever the other does."""
        if ttt.winner(board) is not None:
            return 1 if ttt.winner(board) == mine else -1
        squares = ttt.best_moves(board) if ttt.to_move(board) == mine else ttt.free(board)
        return min((worst(ttt.put(board, square), mine) for square in squares), default=0)

    assert worst(EMPTY, 0) == worst(EMPTY, 1) == 0


@pytest.mark.parametrize(
    ("text", "square"),
    [("5", 4), (" 9 ", 8), ("I take square 2.", 1), ("2, yes 2", 1), ("**7**", 6), ("square10 or 3", 2)],
)
def test_moves_are_read_from_words(text: str, square: int) -> None:
    assert TicTacToe().read(0, text) == square


@pytest.mark.parametrize("text", ["", "0", "10", "five", "1 or 2", "19", "x" * 100_000 + "5"])
def test_what_is_no_move(text: str) -> None:
    with pytest.raises(IllegalMove, match="one number from 1 to 9"):
        TicTacToe().read(0, text)


def test_a_taken_square_is_refused() -> None:
    with pytest.raises(IllegalMove, match="Square 5 is taken"):
        TicTacToe("....X....").read(1, "5")


@pytest.mark.parametrize("board", ["XX.......", "O........", "XO", "XOXOXOXOZ"])
def test_a_board_that_cannot_be(board: str) -> None:
    with pytest.raises(ValueError, match="no tic-tac-toe board"):
        TicTacToe(board)


def test_what_a_player_sees() -> None:
    game = TicTacToe("X...O....")
    assert game.news(0) == "X | 2 | 3\n4 | O | 6\n7 | 8 | 9"
    assert "play tic-tac-toe as O against X" in game.rules(1)
    assert TicTacToe("X...O....", terse=True).news(0) == "2346789 1 5"
    assert TicTacToe("X...O....", terse=True).news(1) == "2346789 5 1"
    assert TicTacToe(terse=True).news(0) == "123456789 - -"
    assert TicTacToe(terse=True).rules(0) == ""
    assert game.legal_moves(0) == ["2", "3", "4", "6", "7", "8", "9"]


def first_free(prompt: str, request: SampleRequest) -> str:
    return prompt.rstrip().removesuffix("Assistant:").split()[-3][0]


def test_fixed_opponents_and_seats_in_rotation() -> None:
    for opponent in ("random", "minimax", "mixed"):
        groups = ttt.groups(RENDERER, opponent=opponent, group_size=3, terse=True, memory=False)
        for index in range(4):
            policy = Speaker(first_free)
            builder = groups[index]
            report = simulate(lambda builder=builder, policy=policy: play_group(builder, policy, RolloutSettings(), 1))
            group = report.unwrap()
            assert len(group.trajectories) == 3
            assert group.tags == ("tic_tac_toe", f"vs_{opponent}", f"seat_{index % 2}")
            assert {turn.logs["seat"] for member in group.trajectories for turn in member.turns} == {index % 2}
            if opponent == "minimax":
                assert all(member.reward <= 0 for member in group.trajectories)


def test_the_perfect_player_wins_most_games_against_one_that_takes_the_first_free_square() -> None:
    groups = ttt.groups(RENDERER, opponent="minimax", group_size=20, terse=True, memory=False, seat=1)
    group = simulate(lambda: play_group(groups[0], Speaker(first_free), RolloutSettings(), 1)).unwrap()
    assert group.rewards_G.mean() < -0.4


def test_wrong_opponents_and_seats_are_said() -> None:
    with pytest.raises(ValueError, match="no opponent is called 'maximin'; there are self, model, random, minimax"):
        ttt.groups(RENDERER, opponent="maximin")
    with pytest.raises(ValueError, match="'model' needs a model"):
        ttt.groups(RENDERER, opponent="model")
    with pytest.raises(ValueError, match="seat 2 does not exist"):
        ttt.groups(RENDERER, opponent="random", seat=2)


def test_example_turns_are_legal_and_as_good_as_asked_for() -> None:
    for knows in (0.0, 1.0):
        rng = random.Random(3)
        for _ in range(300):
            shown, answer = ttt.example_turn(rng, knows=knows)
            _, mine, others = (set(part.strip("-")) for part in shown.split())
            marks = "XO" if len(mine) == len(others) else "OX"
            board = "".join(marks[0] if n in mine else marks[1] if n in others else "." for n in "123456789")
            assert ttt.terse(board, ttt.to_move(board)) == shown
            square = TicTacToe(board).read(0, answer)
            assert knows == 0.0 or square in ttt.best_moves(board)


# ---- self-play at length


def plays_anything(request: SampleRequest, index: int) -> Draw:
    """Mostly free squares, sometimes a taken one, now and then nonsense; slow at times."""
    text = TOKENIZER.decode(request.prompt.tokens.tolist())
    free = list(text.rstrip().removesuffix("Assistant:").split()[-3].strip("-"))
    rng = np.random.default_rng(derive_seed(request.seed, index))
    said = "pass" if rng.random() < 0.01 or not free else str(rng.choice(free if rng.random() < 0.97 else list("159")))
    seconds = LogNormal(0.5, 1.0).draw(rng.random(), rng.random())
    return Draw(np.array(TOKENIZER.encode(f" {said}\n\nUser:").ids, np.int32), seconds)


def self_play(games: int, schedule: Schedule, seed: int) -> SimulationReport[RunResult]:
    matches = 4

    async def program() -> RunResult:
        backend = SimulatedBackend(
            SamplerModel(vocabulary=(0, 512), script=plays_anything),
            TrainerModel(),
            slots=64,
            failures=Failures(rates={"sample": 0.02}, after=1.0),
        )
        return await train_rl(
            backend,
            groups=ttt.groups(RENDERER, group_size=matches, terse=True, memory=False, rules=MatchRules(retries=1)),
            schedule=schedule,
            steps=games // matches // schedule.groups_per_step,
            settings=RLSettings(
                RolloutSettings(
                    SamplingParams(max_tokens=8),
                    RolloutLimits(wall_clock=7.0),
                    failure=Retry(3),
                ),
                advantages=by_seat(2),
                sampler=SamplerSettings(),
                drop_constant_groups=False,
                seed=seed,
            ),
        )

    return simulate(program, seed=seed, horizon=1e6)


def test_games_that_are_over_before_the_second_players_turn_are_trained() -> None:
    """A member that was never asked has a reward and no datum, and its group is as good as any."""

    async def program() -> RunResult:
        return await train_rl(
            SimulatedBackend(SamplerModel(vocabulary=(0, 512), script=lambda request, index: Draw(passes))),
            groups=ttt.groups(RENDERER, group_size=3, terse=True),
            schedule=Schedule(2),
            steps=2,
            settings=RLSettings(advantages=by_seat(2), drop_constant_groups=False),
        )

    passes = np.array(TOKENIZER.encode(" pass\n\nUser:").ids, np.int32)
    for row in simulate(program).unwrap().rows:
        assert (row["groups/failed"], row["optim/datums"], row["env/all/total_episodes"]) == (0, 6, 12)
        assert row["env/all/reward/total"] == 0
        assert row["env/all/turns_per_episode"] == 0.5


@pytest.mark.parametrize(
    ("games", "schedule"),
    [(200, Schedule(5)), (MANY, Schedule(MANY // 40, max_staleness=2, minibatches=5))],
    ids=["sync", "async"],
)
def test_many_games_against_itself_and_no_group_is_stuck(games: int, schedule: Schedule) -> None:
    """With failing and slow sampling, illegal moves, and episodes cut off by their wall clock in the middle of a game."""
    report = self_play(games, schedule, seed=3)
    result = report.unwrap()
    assert (result.ending, result.version) == ("complete", 10)
    episodes = sum(row["env/all/total_episodes"] for row in result.rows)
    assert episodes == 2 * games
    assert sum(row["env/all/reward/total"] * row["env/all/total_episodes"] for row in result.rows) == pytest.approx(0)
    assert sum(row.get("env/all/end/time_limit", 0.0) for row in result.rows) > 0
    assert sum(row["env/all/illegal"] for row in result.rows) > 0
    assert result.rows[-1]["env/all/seat_0/score"] != 0
