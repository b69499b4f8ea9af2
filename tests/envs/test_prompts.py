"""Prompts without a right answer, joined datasets, hints for a teacher, and short answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.backends import Completion, SampleRequest, SamplingParams
from engine.data import Problem
from engine.rendering import get_renderer, user
from engine.runtime.testing import simulate
from envs.arithmetic import ArithmeticGroups, Difficulty
from envs.contracts import GroupBuilder
from envs.prompts import JoinedGroups, PromptGroups, as_it_is
from envs.rollout import RolloutSettings, play_group
from envs.short_answers import ShortAnswerGroups, same_answer
from recipes.tiny import make_tokenizer


@pytest.fixture(scope="module")
def renderer() -> Any:
    return get_renderer("role_colon", make_tokenizer())


def played(builder: GroupBuilder, renderer: Any, said: str = " 52\n\nUser:") -> Any:
    class Policy:
        async def sample(self, request: SampleRequest) -> list[Completion]:
            tokens = np.array(renderer.vocabulary.encode(said), np.int32)
            return [
                Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0) for _ in range(request.num_samples)
            ]

    async def program() -> Any:
        return await play_group(builder, Policy(), RolloutSettings(SamplingParams(max_tokens=16)), seed=0)

    return simulate(program).unwrap()


def read(renderer: Any, prompt: Any) -> str:
    return str(renderer.vocabulary.decode(prompt.tokens.tolist()))


def test_an_answer_is_worth_nothing_and_a_teacher_reads_its_own_prompt(renderer: Any) -> None:
    def ask(text: str) -> Any:
        return [user(text)], [user(f"Hint. {text}")]

    groups = PromptGroups(renderer, ["one?", "two?"], ask, group_size=3)
    assert len(groups) == 2
    group = played(groups[1], renderer)
    assert group.tags == ("prompts",)
    assert [trajectory.reward for trajectory in group.trajectories] == [0.0] * 3
    turn = group.trajectories[0].turns[0]
    assert read(renderer, turn.prompt) == "User: two?\n\nAssistant:"
    assert read(renderer, turn.teacher_prompt) == "User: Hint. two?\n\nAssistant:"
    plain = played(PromptGroups(renderer, [[user("one?")]], as_it_is)[0], renderer)
    assert plain.trajectories[0].turns[0].teacher_prompt is None


def test_joined_datasets_carry_their_names(renderer: Any) -> None:
    def part(count: int, tag: str) -> PromptGroups[Any]:
        return PromptGroups(renderer, [[user(f"{tag} {number}?")] for number in range(count)], as_it_is, tags=(tag,))

    joined = JoinedGroups({"a": part(2, "x"), "b": part(3, "b")})
    assert len(joined) == 5
    assert joined.blocking
    assert [joined[index].tags for index in range(5)] == [("a", "x")] * 2 + [("b",)] * 3
    assert read(renderer, played(joined[3], renderer).trajectories[0].turns[0].prompt) == "User: b 1?\n\nAssistant:"
    with pytest.raises(IndexError):
        joined[5]
    with pytest.raises(ValueError, match="dataset of groups 'c' is empty"):
        JoinedGroups({"a": part(1, "x"), "c": part(0, "x")})
    with pytest.raises(ValueError, match="no datasets"):
        JoinedGroups({})


def test_sums_with_a_hint_for_the_teacher(renderer: Any) -> None:
    groups = ArithmeticGroups(renderer, Difficulty(digits=1), 2, hint="Hint: {answer} since {solution}. {question}")
    problem = groups.difficulty.draw(0, 4)
    group = played(groups[4], renderer, f" {problem.answer}\n\nUser:")
    assert [trajectory.reward for trajectory in group.trajectories] == [1.0, 1.0]
    turn = group.trajectories[1].turns[0]
    assert read(renderer, turn.prompt) == f"User: What is {problem}?\n\nAssistant:"
    hint = f"Hint: {problem.answer} since {problem} = {problem.answer}. What is {problem}?"
    assert read(renderer, turn.teacher_prompt) == f"User: {hint}\n\nAssistant:"


@pytest.mark.parametrize(
    ("given", "answer", "same"),
    [
        ("It is 52.", "52", True),
        ("52", "52.0", False),
        ("1,024", "1024", True),
        ("so -7", "-7", True),
        ("25", "52", False),
        ("Paris", "paris.", True),
        ("The answer: Paris.", "Paris", True),
        ("Not Paris but Rome", "Paris", False),
        ("comparis", "paris", False),
        ("", "", True),
        ("anything", "", False),
    ],
)
def test_the_same_answer(given: str, answer: str, same: bool) -> None:
    assert same_answer(given, answer) is same


def test_questions_with_known_answers(renderer: Any) -> None:
    groups = ShortAnswerGroups(renderer, [Problem("What is 47 + 5?", "52", tags=("sums",))], group_size=2)
    group = played(groups[0], renderer)
    assert [trajectory.reward for trajectory in group.trajectories] == [1.0, 1.0]
    assert group.tags == ("sums",)
    assert played(groups[0], renderer, " 42\n\nUser:").trajectories[0].reward == 0.0
