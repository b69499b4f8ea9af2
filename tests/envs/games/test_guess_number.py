"""Guess a number: hints, limits, rewards; and how well the players that it is compared with do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from engine.backends import SampleRequest, SamplingParams
from engine.runtime.simulation import simulate
from engine.training.trajectories import Trajectory, TrajectoryGroup
from envs.games.guess_number import (
    GuessGroup,
    GuessGroups,
    GuessRules,
    best_play,
    conversation,
    example_game,
    read_guess,
)
from envs.rollout import RolloutSettings, play_group
from tests.envs.games.tables import RENDERER, Speaker


def played(rules: GuessRules, number: int, says: Callable[[str, SampleRequest], str], size: int = 1) -> TrajectoryGroup:
    settings = RolloutSettings(SamplingParams(max_tokens=24))
    group = GuessGroup(RENDERER, rules, number, size)
    return simulate(lambda: play_group(group, Speaker(says, lambda request: 0.0), settings, 1)).unwrap()


def in_order(*answers: str) -> Callable[[str, SampleRequest], str]:
    return lambda prompt, request: answers[prompt.count("Assistant:") - 1]


def halving(low: int, high: int) -> Callable[[str, SampleRequest], str]:
    """The perfect player, from nothing but what is written in the prompt."""

    def guess(prompt: str, request: SampleRequest) -> str:
        least, most = low, high
        said = [line for line in prompt.split("\n\n") if line]
        for answer, hint in zip(said[1::2], said[2::2], strict=False):
            number = int(answer.removeprefix("Assistant:"))
            if "higher" in hint:
                least = number + 1
            else:
                most = number - 1
        return str((least + most) // 2)

    return guess


def last(trajectory: Trajectory) -> dict[str, float]:
    return dict(trajectory.turns[-1].metrics)


def test_a_game_from_its_question_to_its_end() -> None:
    (game,) = played(GuessRules(1, 20, 5), 13, in_order("10", "15", "12", "13")).trajectories
    assert [turn.logs["question"] for turn in game.turns[1:]] == ["higher", "lower", "higher"]
    assert "from 1 to 20" in game.turns[0].logs["question"]
    assert (game.reward, game.end) == (1.0, "done")
    assert last(game) == {"format": 1.0, "sensible": 1.0, "correct": 1.0, "guesses": 4.0}
    assert game.turns[-1].logs["reference"] == "13"


def test_guesses_run_out() -> None:
    (game,) = played(GuessRules(1, 20, 3), 13, in_order("1", "1", "20")).trajectories
    assert (game.reward, len(game.turns)) == (0.0, 3)
    assert [turn.metrics["sensible"] for turn in game.turns] == [1, 0, 1]
    assert last(game)["correct"] == 0


def test_an_answer_without_a_number_costs_a_guess_and_tells_what_is_left() -> None:
    (game,) = played(GuessRules(1, 20, 4, penalty=0.25), 5, in_order("10", "hm", "3 or 4", "5")).trajectories
    assert [turn.logs["question"] for turn in game.turns[2:]] == ["a number from 1 to 9, please"] * 2
    assert [turn.reward for turn in game.turns] == [0.0, -0.25, -0.25, 1.0]
    assert [turn.metrics["format"] for turn in game.turns] == [1, 0, 0, 1]


def test_rewards_for_speed_and_for_heeding_the_hints() -> None:
    rules = GuessRules(1, 9, 5, patience=0.5)
    assert [rules.win(guesses) for guesses in range(1, 6)] == [1.0, 0.875, 0.75, 0.625, 0.5]
    assert GuessRules(1, 9, 1, patience=0.5).win(1) == 1.0
    (game,) = played(GuessRules(1, 9, 3, heeding=0.1), 9, in_order("5", "4", "9")).trajectories
    assert [turn.reward for turn in game.turns] == pytest.approx([0.1, 0.0, 1.1])


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("7", 7),
        (" 42. ", 42),
        ("I say 5!", 5),
        ("5, surely 5", 5),
        ("-3", -3),
        ("", None),
        ("1 or 2", None),
        ("3.5", None),
        ("9" * 19, None),
        ("x" * 5000 + " 7", None),
        ("seven", None),
    ],
)
def test_a_guess_is_the_only_number_in_the_answer(text: str, guess: int | None) -> None:
    assert read_guess(text) == guess


@pytest.mark.parametrize(("high", "guesses"), [(100, 7), (15, 4), (7, 3)])
def test_halving_always_finds_it(high: int, guesses: int) -> None:
    rules = GuessRules(1, high, guesses)
    assert best_play(rules) == high
    for number in range(1, high + 1):
        assert played(rules, number, halving(1, high)).rewards_G.tolist() == [1.0]


def test_problems_follow_from_seed_and_index() -> None:
    groups = GuessGroups(RENDERER, GuessRules(1, 50), seed=3)
    numbers = [groups[index].number for index in range(200)]  # type: ignore[attr-defined]
    again = GuessGroups(RENDERER, GuessRules(1, 50), seed=3)
    assert numbers == [again[index].number for index in range(200)]  # type: ignore[attr-defined]
    assert set(numbers) <= set(range(1, 51))
    assert len(set(numbers)) > 40
    with pytest.raises(IndexError, match="problem 5 of 5"):
        GuessGroups(RENDERER, count=5)[5]


def test_example_games_are_games() -> None:
    rules = GuessRules(1, 15, 4)
    found: dict[float, float] = {}
    for knows in (0.0, 1.0):
        rng = random.Random(1)
        wins = 0
        for _ in range(400):
            turns = example_game(rules, rng, knows=knows)
            assert 1 <= len(turns) <= 4
            assert turns[0][0] == rules.question()
            assert {said for said, _ in turns[1:]} <= {"higher", "lower"}
            wins += len(turns) < 4
        found[knows] = wins / 400
    assert found[0.0] == pytest.approx(1 - (14 / 15) ** 3, abs=0.06)  # in three guesses, by luck
    assert found[1.0] == pytest.approx(7 / 15, abs=0.06)  # those that halving finds in three
    messages: list[Any] = conversation(turns)
    assert [message.role for message in messages[:2]] == ["user", "assistant"]


@pytest.mark.parametrize("wrong", [{"low": 5, "high": 4}, {"guesses": 0}, {"patience": 1.5}])
def test_rules_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"low|guesses|patience"):
        GuessRules(**wrong)
