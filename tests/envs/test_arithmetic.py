"""Arithmetic problems: what is drawn, that it can be drawn again, and what counts as the right answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rendering import get_renderer
from envs.arithmetic import ArithmeticEnv, ArithmeticGroups, Difficulty, Problem, final_number
from envs.problem import ProblemGroup
from recipes.tiny import make_tokenizer

renderer = get_renderer("role_colon", make_tokenizer())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("52", 52),
        (" 52\n\n", 52),
        ("The answer is 52.", 52),
        ("47 + 5 = 52", 52),
        ("47 + 5 = 52, because 7 + 5 is more than 9", 52),
        ("47 + 5 = 40 + 12 = 52", 52),
        ("The sum of 47 and 5 is **52**.", 52),
        ("$\\boxed{52}$ and not 42", 52),
        ("Answer: 1,234", 1234),
        ("52.0", 52),
        ("-5", -5),
        ("= −5", -5),
        ("It is - 5", -5),
        ("10 - 5", 5),
        ("007", 7),
        ("52.5", None),
        ("50 + 2", 2),
        ("", None),
        ("fifty-two", None),
        ("9**9**9", 9),
        ("__import__('os').system('true')", None),
        ("٥٢", None),
        ("1" * 5000, None),
    ],
)
def test_final_number(text: str, number: int | None) -> None:
    assert final_number(text) == number


@given(st.text())
def test_final_number_takes_any_text(text: str) -> None:
    found = final_number(text)
    assert found is None or isinstance(found, int)


@given(st.integers(-(10**9), 10**9))
def test_final_number_finds_every_number_in_every_writing(number: int) -> None:
    for writing in (
        f"{number}",
        f"{number:,}",
        f"The answer is {number}.",
        f"3 + 4 = {number}",
        f"\\boxed{{{number}}}",
    ):
        assert final_number(writing) == number, writing


@pytest.mark.parametrize(
    ("problem", "text", "answer", "carries"),
    [
        (Problem("add", 47, 5), "47 + 5", 52, True),
        (Problem("add", 44, 5), "44 + 5", 49, False),
        (Problem("subtract", 42, 5), "42 - 5", 37, True),
        (Problem("subtract", 3, 8), "3 - 8", -5, True),
        (Problem("multiply", 12, 4), "12 * 4", 48, False),
        (Problem("multiply", 13, 4), "13 * 4", 52, True),
    ],
)
def test_problem(problem: Problem, text: str, answer: int, carries: bool) -> None:
    assert (str(problem), problem.answer, problem.carries) == (text, answer, carries)


def test_drawing_follows_from_seed_and_index_alone() -> None:
    difficulty = Difficulty(("add", "subtract", "multiply"), digits=3)
    forwards = [difficulty.draw(7, index) for index in range(50)]
    backwards = [difficulty.draw(7, index) for index in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [difficulty.draw(8, index) for index in range(50)]
    # Written down, because a resumed run on another machine must get the same problems.
    assert [str(problem) for problem in forwards[:3]] == PINNED


PINNED = ["369 - 870", "837 + 937", "426 - 913"]


def test_difficulty_is_kept() -> None:
    drawn = [Difficulty(("add", "subtract"), digits=2, digits_right=1).draw(0, index) for index in range(500)]
    assert {problem.operation for problem in drawn} == {"add", "subtract"}
    assert min(problem.left for problem in drawn) >= 10
    assert max(problem.left for problem in drawn) <= 99
    assert {problem.right for problem in drawn} == set(range(10))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_carries(share: float) -> None:
    found = sum(Difficulty(carry=share).draw(0, index).carries for index in range(1000)) / 1000
    assert found == share if share in (0.0, 1.0) else abs(found - share) < 0.05


def test_impossible_carries_are_refused() -> None:
    with pytest.raises(ValueError, match="carry"):
        Difficulty(carry=1.5)


def test_tags() -> None:
    assert Difficulty(digits=2).tags(Problem("add", 47, 15)) == ("arithmetic", "add_2", "carry")
    assert Difficulty(digits=2, digits_right=1).tags(Problem("subtract", 47, 5)) == ("arithmetic", "subtract_2x1")


def test_groups_by_position() -> None:
    groups = ArithmeticGroups(renderer, Difficulty(digits=2), group_size=3, count=10, seed=5)
    assert len(groups) == 10
    group = groups[4]
    assert isinstance(group, ProblemGroup)
    assert group.single_turn
    assert group.tags[:2] == ("arithmetic", "add_2")
    with pytest.raises(IndexError, match="problem 10 of 10"):
        groups[10]


@pytest.mark.anyio
async def test_the_same_position_gives_the_same_prompt_and_its_members_share_it() -> None:
    one, again = (ArithmeticGroups(renderer, group_size=3, seed=5)[4] for _ in range(2))
    prompts = [await env.reset() for env in await one.make_envs()]
    assert len(prompts) == 3
    assert prompts[0] is prompts[1] is prompts[2]
    (other, *_) = await again.make_envs()
    assert await other.reset() == prompts[0]


def test_wording() -> None:
    env = ArithmeticEnv(renderer, Problem("add", 1, 2), wording="Add up: {}.")
    assert env.question() == "Add up: 1 + 2."
    assert (env.grade("3"), env.grade("4"), env.reference()) == (1.0, 0.0, "3")


@pytest.mark.anyio
async def test_examples_stand_before_every_question_and_are_the_same() -> None:
    prompts = []
    for index in range(2):
        (env,) = await ArithmeticGroups(renderer, Difficulty(digits=1), group_size=1, examples=2)[index].make_envs()
        observation = await env.reset()
        prompts.append(renderer.vocabulary.decode(observation.prompt.tokens))
    shown = [prompt.rpartition("User: What is")[0] for prompt in prompts]
    assert shown[0] == shown[1]
    assert shown[0].count("What is") == 2
    question, answer = shown[0].split("\n\n")[:2]
    left, _, right = question.removeprefix("User: What is ").removesuffix("?").split()
    assert answer == f"Assistant: {int(left) + int(right)}"
