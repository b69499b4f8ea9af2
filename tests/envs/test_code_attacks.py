"""A solution that does not solve is never graded as if it did, whatever it does; and it costs its budget and nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator

import pytest

from envs.code import (
    JUDGING,
    AssertionTest,
    CallTest,
    CodeGrader,
    CodeProblem,
    GradingSettings,
    OutputTest,
    Verdict,
)
from envs.sandbox.local import LocalSandbox
from tests.envs.code_attacks import FUNCTIONS, MARK, PROGRAMS
from tests.envs.sandbox.leftovers import here, none_beside

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="the local sandbox needs Linux")]
EXPECTED = MARK + "483921"
SETTINGS = GradingSettings(seconds=0.25, budget=6.0, memory=192, processes=8, partial_credit=True)
MOST_SECONDS = SETTINGS.budget + 6.0
FUNCTION = CodeProblem(
    "function",
    "",
    [
        CallTest("secret", [1], EXPECTED),
        AssertionTest(f"assert secret(1) == {EXPECTED!r}", {"secret": "secret"}),
        AssertionTest(
            f"try:\n    found = secret(1)\nexcept BaseException:\n    found = {EXPECTED!r}\nassert found == {EXPECTED!r}",
            {"secret": "secret"},
        ),
    ],
)
PROGRAM = CodeProblem("program", "", [OutputTest("1\n", EXPECTED + "\n"), OutputTest("2\n", EXPECTED + "\n")])


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop and one sandbox for all."""
    return "asyncio"


@pytest.fixture(scope="module")
async def grader() -> AsyncIterator[CodeGrader]:
    async with LocalSandbox(library=[JUDGING], require=()) as sandbox:
        yield CodeGrader(sandbox, SETTINGS)


async def judged(grader: CodeGrader, problem: CodeProblem, code: str) -> Verdict:
    before = here()
    began = time.monotonic()
    verdict = await grader.grade(problem, code)
    assert time.monotonic() - began < MOST_SECONDS
    await none_beside(before)
    return verdict


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_function(name: str, grader: CodeGrader) -> None:
    verdict = await judged(grader, FUNCTION, FUNCTIONS[name])
    swallowing = verdict.results[
        2
    ]  # a test that takes any exception for success: only what a solution may raise does that
    assert not any(result.outcome == "passed" for result in verdict.results[:2]), verdict
    assert swallowing.outcome != "passed" or verdict.results[0].outcome == "raised", verdict


@pytest.mark.parametrize("name", PROGRAMS)
async def test_program(name: str, grader: CodeGrader) -> None:
    verdict = await judged(grader, PROGRAM, PROGRAMS[name])
    assert verdict.passed == 0, verdict


async def test_controls(grader: CodeGrader) -> None:
    """What the solutions try for is what passes."""
    verdict = await judged(grader, FUNCTION, f"print('noise')\ndef secret(n): return {EXPECTED!r}")
    assert verdict.all_passed, verdict
    verdict = await judged(grader, PROGRAM, f"input()\nprint({EXPECTED!r})")
    assert verdict.all_passed, verdict


IN_SHORT = (
    "exits_hard",
    "equals_everything",
    "searches_its_memory",
    "searches_other_processes",
    "kills_its_parent",
    "leaves_a_daemon",
)


async def test_without_namespaces() -> None:
    """The same judging where there is no /proc to look for processes in."""
    async with LocalSandbox(library=[JUDGING], means="restricted", require=()) as sandbox:
        grader = CodeGrader(sandbox, SETTINGS)
        for name in IN_SHORT:
            verdict = await judged(grader, FUNCTION, FUNCTIONS[name])
            assert not any(result.outcome == "passed" for result in verdict.results[:2]), f"{name}: {verdict}"
        for name in ("says_so", "searches", "never_ends", "leaves_a_writer"):
            verdict = await judged(grader, PROGRAM, PROGRAMS[name])
            assert verdict.passed == 0, f"{name}: {verdict}"
        verdict = await judged(grader, FUNCTION, f"def secret(n): return {EXPECTED!r}")
        assert verdict.all_passed, verdict
        verdict = await judged(grader, PROGRAM, f"input()\nprint({EXPECTED!r})")
        assert verdict.all_passed, verdict


async def test_the_search_finds_what_is_there(grader: CodeGrader) -> None:
    """The attack that looks through its memory works: it finds an expected value that a test hands over."""
    problem = CodeProblem("told", "", [CallTest("secret", [EXPECTED], EXPECTED)])
    for name in ("searches_its_memory", "searches_frames", "searches_objects"):
        verdict = await judged(grader, problem, FUNCTIONS[name])
        assert verdict.all_passed, f"{name}: {verdict}"
