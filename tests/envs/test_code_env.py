"""Programming problems as environments: the suite of all environments, rewards, further attempts."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends.values import Completion
from engine.rendering import TrainOnWhat, assistant, get_renderer, user
from envs import conformance
from envs.code import CallTest, CodeGrader, CodeProblem, GradingSettings, OutputTest
from envs.code.env import CodeEnv, CodeGroups, CodeSettings, code_of, feedback
from envs.code.grading import TestResult, Verdict
from envs.code.opening import SandboxConfig, load_problems, make_sandbox, open_grader
from envs.code.toys import ToyProblems, toy_problem
from envs.contracts import Step
from envs.registry import open_env
from envs.sandbox import RunOutcome, RunRequest, SandboxError, SandboxUnavailable
from envs.sandbox.local import LocalSandbox
from envs.sandbox.sandbox_fusion import SandboxFusion
from envs.sandbox.scripted import ScriptedSandbox
from recipes.tiny import make_tokenizer

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="the local sandbox needs Linux")
RENDERER = get_renderer("role_colon", make_tokenizer())
PROBLEM = CodeProblem(
    "double",
    "Double it.",
    [CallTest("f", [1], 2, public=True), CallTest("f", [5], 10), CallTest("f", [0], 0)],
    reference="def f(x): return 2 * x",
)
RIGHT, WRONG, HALF = "def f(x): return 2 * x", "def f(x): return x", "def f(x): return 2 if x == 1 else 0"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock on both: programs take real time."""
    return str(request.param)


def sampled(answer: str) -> Completion:
    (example,) = RENDERER.supervised_examples([user("?"), assistant(answer)], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    tokens = example.model_input.tokens[np.asarray(example.weights_T) > 0]
    return Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0)


def fenced(code: str) -> str:
    return f"Here:\n```python\n{code}\n```"


async def steps(groups: CodeGroups, *answers: str) -> list[Step]:
    (env, *_) = await groups[0].make_envs()
    await env.reset()
    return [await env.step(sampled(answer)) for answer in answers]


def groups_of(grader: CodeGrader, size: int = 4, **settings: Any) -> CodeGroups:
    return CodeGroups(RENDERER, [PROBLEM], grader, size, CodeSettings(**settings))


@asynccontextmanager
async def local_groups(size: int = 4, **settings: Any) -> AsyncIterator[CodeGroups]:
    async with open_grader(settings=GradingSettings(seconds=1.0, budget=5.0)) as grader:
        yield groups_of(grader, size, **settings)


# ---- the suite of all environments

SUITES = {
    "one_attempt": conformance.Subject(
        lambda: local_groups(size=2), RENDERER, answers=[fenced(RIGHT), "no code"], problems=(0,), cancellations=4
    ),
    "two_attempts": conformance.Subject(
        lambda: local_groups(size=2, attempts=2),
        RENDERER,
        answers=[fenced(HALF)],
        problems=(0,),
        max_turns=2,
        cancellations=2,
    ),
}


@linux
@pytest.mark.parametrize("name", SUITES)
def test_conformance(name: str) -> None:
    report = anyio.run(conformance.examine, SUITES[name], backend="trio" if name == "two_attempts" else "asyncio")
    assert not report.failed, str(report)


# ---- rewards


@linux
@pytest.mark.parametrize("partial", [False, True])
async def test_rewards(partial: bool) -> None:
    settings = GradingSettings(partial_credit=partial)
    async with open_grader(settings=settings) as grader:
        groups = groups_of(grader)
        (right,) = await steps(groups, fenced(RIGHT))
        (half,) = await steps(groups, fenced(HALF))
        (none,) = await steps(groups, "I do not know.")
        (bare,) = await steps(groups, RIGHT)
        (taken,) = await steps(groups_of(grader, form="bare"), RIGHT)
    assert (right.reward, right.observation) == (1.0, None)
    assert right.metrics == {"correct": 1.0, "format": 1.0, "tests_passed": 1.0, "timed_out": 0.0, "attempts": 1.0}
    assert half.reward == pytest.approx(2 / 3 if partial else 0.0)
    assert half.metrics["tests_passed"] == pytest.approx(2 / 3 if partial else 1 / 3)
    assert half.logs["failure"] == "wrong: returned 0"
    assert (none.reward, none.metrics["format"]) == (-0.1, 0.0)
    assert bare.reward == -0.1
    assert taken.reward == 1.0


@linux
async def test_an_answer_that_was_cut_off_is_in_no_good_form() -> None:
    async with local_groups(form="bare") as groups:
        (env, *_) = await groups[0].make_envs()
        await env.reset()
        whole = sampled(RIGHT)
        step = await env.step(Completion(whole.tokens[:-1], whole.logprobs[:-1], "length", 0))
    assert step.metrics["format"] == 0.0
    assert step.reward == pytest.approx(0.9)


@linux
async def test_another_attempt_is_told_what_went_wrong() -> None:
    async with local_groups(attempts=3) as groups:
        first, second, third = await steps(groups, fenced(WRONG), fenced(HALF), fenced(RIGHT))
    assert (first.reward, first.metrics, second.reward) == (0.0, {}, 0.0)
    assert first.observation is not None
    assert second.observation is not None
    said = RENDERER.vocabulary.decode(second.observation.prompt.tokens)
    assert "f(1) should return 2.\nInstead, it returned 1\nTry again." in said
    assert "This does not pass all of the hidden tests: one result is wrong. Try again." in said
    assert "10" not in said.partition("Double it.")[2]  # what a hidden test expects
    assert (third.reward, third.observation, third.metrics["attempts"]) == (1.0, None, 3.0)


@linux
async def test_the_last_attempt_counts() -> None:
    async with local_groups(attempts=2) as groups:
        _, last = await steps(groups, fenced(WRONG), "I give up.")
    assert (last.reward, last.observation) == (-0.1, None)
    assert last.metrics["attempts"] == 2.0


def test_feedback_of_programs() -> None:
    problem = CodeProblem("p", "", [OutputTest("1\n", "2\n", public=True), OutputTest("3", "4")])
    wrong = Verdict([TestResult("raised", "ValueError: x"), TestResult("not_run")])
    assert feedback(problem, wrong) == (
        "For the input\n1\nthe program should print\n2\nIt raised an error: ValueError: x\nTry again."
    )
    hidden = Verdict([TestResult("passed"), TestResult("timed_out", "took more than 6 s")])
    assert feedback(problem, hidden) == "This does not pass all of the hidden tests: one takes too long. Try again."
    assert feedback(problem, Verdict([TestResult("passed"), TestResult("wrong", "printed 5")])) == (
        "This does not pass all of the hidden tests: one result is wrong. Try again."
    )
    assert "no code" in feedback(problem, None)


def test_forms() -> None:
    assert code_of("x = 1", "bare") == "x = 1"
    assert code_of("x = 1", "fenced") is None
    assert code_of("a\n```\nx = 1\n```\nb", "bare") == "x = 1\n"
    assert code_of("  \n", "bare") is None


# ---- one group, one verdict for each program


async def test_equal_answers_are_judged_once() -> None:
    async with ScriptedSandbox(lambda request: RunOutcome("exited", 0), seconds=0.01) as sandbox:
        groups = groups_of(CodeGrader(sandbox))
        envs = await groups[0].make_envs()
        observations = [await env.reset() for env in envs]
        async with anyio.create_task_group() as group:
            for env, code in zip(envs, (RIGHT, WRONG, RIGHT, RIGHT), strict=True):
                group.start_soon(env.step, sampled(fenced(code)))
        assert len(sandbox.requests) == 2
    assert all(observation.prompt is observations[0].prompt for observation in observations)


async def test_a_failed_run_is_tried_again_by_who_waits() -> None:
    """Whoever waits for a program that another member has sent does not inherit its failure."""
    answers = iter([SandboxUnavailable("away"), RunOutcome("exited", 0)])

    def answer(request: RunRequest) -> RunOutcome | SandboxError:
        return next(answers)

    async with ScriptedSandbox(answer, seconds=0.01) as sandbox:
        first, second, *_ = await groups_of(CodeGrader(sandbox))[0].make_envs()
        await first.reset()
        await second.reset()
        ended: list[str] = []

        async def step(env: Any, name: str) -> None:
            try:
                await env.step(sampled(fenced(RIGHT)))
            except SandboxUnavailable:
                name += " failed"
            ended.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(step, first, "first")
            group.start_soon(step, second, "second")
    assert sorted(ended) in (["first", "second failed"], ["first failed", "second"])


# ---- by name, and from a configuration


@linux
async def test_by_name() -> None:
    async with open_env("code", RENDERER, group_size=2, seed=3) as groups:
        envs = await groups[0].make_envs()
        env = envs[0]
        assert isinstance(env, CodeEnv)
        await env.reset()
        step = await env.step(sampled(ToyProblems(seed=3)[0].reference or ""))
    assert step.reward == 1.0


def test_configurations() -> None:
    assert isinstance(make_sandbox(SandboxConfig()), LocalSandbox)
    assert isinstance(make_sandbox(SandboxConfig(kind="sandbox_fusion", url="http://x")), SandboxFusion)
    with pytest.raises(ValueError, match="url of the SandboxFusion server is needed"):
        SandboxConfig(kind="sandbox_fusion")
    with pytest.raises(ValueError, match=r"give --sandbox\.kind sandbox_fusion too"):
        SandboxConfig(url="http://x")


def test_problems_by_name() -> None:
    assert load_problems("toys", count=5)[4].tags[0] == "code"
    assert toy_problem("less", 7).statement == "f(x) is 7 less than x. Write f in Python."
