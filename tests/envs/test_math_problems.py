"""Problems of mathematics as an environment: how they are asked, what an answer earns, and the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from engine.backends.values import Completion
from engine.data import Problem, read_problems, rows_of
from engine.rendering import get_renderer
from envs import conformance
from envs.arithmetic import Difficulty
from envs.contracts import GroupDataset, Step
from envs.grading import Grade, MathGrader
from envs.math_problems import EXAMPLES, ArithmeticProblems, MathEnv, MathForm, MathGroups
from recipes.tiny import make_tokenizer

pytestmark = pytest.mark.anyio
tokenizer = make_tokenizer()
renderer = get_renderer("role_colon", tokenizer)
HALF = Problem("What is 2/4?", "1/2", tags=("Number Theory", "Level 5"))


async def answered(text: str, form: MathForm | None = None, problem: Problem = HALF) -> Step:
    env = MathEnv(renderer, problem, MathGrader(None), form)
    await env.reset()
    tokens = np.array(tokenizer.encode(f" {text}\n\nUser:").ids, np.int32)
    return await env.step(Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0))


@pytest.mark.parametrize(
    ("text", "form", "reward", "correct", "formed"),
    [
        (r"\boxed{0.5}", MathForm(), 1.0, 1.0, 1.0),
        (r"\boxed{2}", MathForm(), 0.0, 0.0, 1.0),
        ("0.5", MathForm(), -0.1, 0.0, 0.0),
        ("0.5", MathForm(format_penalty=0.5), -0.5, 0.0, 0.0),
        ("0.5", MathForm(boxed=False), 1.0, 1.0, 1.0),
        ("The answer is 2/4.", MathForm(boxed=False), 1.0, 1.0, 1.0),
        ("", MathForm(boxed=False), 0.0, 0.0, 1.0),
    ],
)
async def test_reward_and_form(text: str, form: MathForm, reward: float, correct: float, formed: float) -> None:
    step = await answered(text, form)
    assert step.reward == pytest.approx(reward)
    assert step.metrics == {"correct": correct, "format": formed, "grading_failed": 0.0}
    assert step.logs["reference"] == "1/2"


async def test_a_failure_of_grading_is_a_wrong_answer_that_is_counted() -> None:
    class Failing:
        async def grade(self, answer: str, reference: str) -> Grade:
            return Grade(0.0, "counts as wrong: it took too long", failure="budget")

    env = MathEnv(renderer, HALF, Failing())
    await env.reset()
    tokens = np.array(tokenizer.encode(" \\boxed{1/2}\n\nUser:").ids, np.int32)
    step = await env.step(Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0))
    assert (step.reward, step.metrics["grading_failed"]) == (0.0, 1.0)
    assert step.logs["grade"] == "counts as wrong: it took too long"


async def test_how_a_problem_is_asked() -> None:
    form = MathForm(system="Think.", few_shot=2, max_tokens=77)
    env = MathEnv(renderer, HALF, MathGrader(None), form)
    observation = await env.reset()
    text = tokenizer.decode(observation.prompt.tokens.tolist())
    assert text.startswith("System: Think.\n\nUser: A baker")
    assert text.endswith("User: What is 2/4? Write your final answer in \\boxed{}.\n\nAssistant:")
    assert text.count("Write your final answer") == 3
    assert observation.max_tokens == 77
    with pytest.raises(ValueError, match="few_shot"):
        MathForm(few_shot=len(EXAMPLES) + 1)


async def test_the_worked_examples_are_right() -> None:
    for answer, right in zip([answer for _, answer in EXAMPLES], ["18", "x = 5", "2/6"], strict=True):
        assert (await MathGrader(None, require_boxed=True).grade(answer, right)).score == 1.0


def test_groups_have_the_problems_tags() -> None:
    group = MathGroups(renderer, [HALF, Problem("?", "1")], MathGrader(None), 4, tags=("math", "mine"))[0]
    assert group.tags == ("math", "mine", "number_theory", "level_5")
    assert group.single_turn


def test_sums_as_problems() -> None:
    problems = ArithmeticProblems(Difficulty(digits=1), count=5, seed=3)
    assert len({problems[index].question for index in range(5)}) > 1
    assert problems[2] == ArithmeticProblems(Difficulty(digits=1), count=5, seed=3)[2]
    left, sign, right = problems[0].question.removeprefix("What is ").rstrip("?").split()
    assert (sign, int(problems[0].answer)) == ("+", int(left) + int(right))
    with pytest.raises(IndexError, match="problem 5 of 5"):
        problems[5]


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check) -> None:
    rows = [{"problem": "2/4?", "solution": "It is \\boxed{\\frac{1}{2}}.", "level": "Level 1", "type": "Algebra"}] * 2
    problems = read_problems(rows_of(rows, schema="math"))

    @asynccontextmanager
    async def opened() -> AsyncIterator[GroupDataset]:
        yield MathGroups(renderer, problems, MathGrader(None), 3)

    subject = conformance.Subject(opened, renderer, [r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{3}", "0.5"])
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    await check(subject)
