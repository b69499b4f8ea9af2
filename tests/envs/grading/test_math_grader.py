"""The grader with its worker processes, on the real clock: budgets that kill, failures that are counted, an event loop that stays free; and inline under `simulate`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import attrs
import numpy as np
import pytest

from engine.backends.values import Completion
from engine.rendering import get_renderer
from engine.runtime import WorkerPool, simulate
from engine.runtime.jobs import BudgetExceeded, PoolClosed
from envs.grading import PRELOAD, MathGrader, open_math_grader
from envs.grading.grade import Grade
from envs.grading.math_grader import AT_ONCE
from envs.problem import ProblemEnv
from recipes.tiny import make_tokenizer

pytestmark = pytest.mark.anyio

SLOW = r"\boxed{\prod_{k=1}^{99999999} k}"
"""Computer algebra multiplies for minutes, deaf to signals."""
ALGEBRA = r"\boxed{\int_0^1 x\,dx}"
"""Only computer algebra knows."""
PATHOLOGICAL = [
    r"\boxed{9^{9^9}}", r"\boxed{9**9**9}", r"\boxed{999999999!}", r"\boxed{2**3**20}", r"\boxed{(x+y+1)**80}", r"\boxed{((x+y)**99)**9}", "9" * 100_000,
    r"\boxed{" + "9" * 100_000 + "}", r"\boxed{" * 5000, "}" * 5000, r"\boxed{\input{/etc/passwd}}", r"\boxed{__import__('os').system('sleep 9')}",
    r"\boxed{[x for x in range(10**9)]}", r"\boxed{\frac{" + "1}{" * 300 + "}", "", "\x00" * 50, r"\boxed{" + "(" * 500 + "}",
]  # fmt: skip


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock on both: processes take real time."""
    return str(request.param)


@attrs.define
class Gap:
    worst: float = 0.0


@asynccontextmanager
async def ticking() -> AsyncIterator[Gap]:
    """The longest time for which the event loop ran nothing else."""
    gap = Gap()

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await anyio.sleep(0.002)
            now = time.perf_counter()
            gap.worst = max(gap.worst, now - last - 0.002)
            last = now

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        yield gap
        group.cancel_scope.cancel()


async def test_references_and_answers_of_data_sets() -> None:
    grader = MathGrader(None)
    assert (await grader.grade("48/2 = 24, and 48+24 = 72\n#### 72", "She sold 24.\n#### 72")).score == 1.0
    assert (await grader.grade("The answer is 72 clips.", "72")).score == 1.0
    assert (await grader.grade("The answer is the 72 that we found", "72")).score == 1.0
    assert (await grader.grade("The answer is 72", r"so we get \boxed{72}")).score == 1.0
    assert (await grader.grade("x = 3", ["2", "3"])).score == 1.0
    assert (await grader.grade("x = 4", ["2", "3"])).score == 0.0
    assert (await grader.grade("", "3")).reason == "there is no answer in it"
    assert grader.counts.no_answer == 1
    with pytest.raises(ValueError, match="no reference"):
        await grader.grade("3", [])


async def test_a_crowd_of_answers_leaves_the_event_loop_its_turns() -> None:
    """However many are graded at once, and whatever each of them costs: a few between two turns of everybody else."""
    grader = MathGrader(None)
    since, most = 0, 0

    async def look() -> None:
        nonlocal since, most
        while True:
            since = grader.counts.graded
            await anyio.lowlevel.checkpoint()
            most = max(most, grader.counts.graded - since)

    async with anyio.create_task_group() as looking:
        looking.start_soon(look)
        async with anyio.create_task_group() as grading:
            for number in range(50):
                grading.start_soon(grader.grade, rf"\boxed{{{number}}}", ["-1", "-2", str(number)])
        looking.cancel_scope.cancel()
    assert grader.counts.graded == 150
    assert most <= 2 * AT_ONCE


async def test_only_a_box_counts_where_that_is_asked_for() -> None:
    grader = MathGrader(None, require_boxed=True)
    assert (await grader.grade(r"\boxed{3}", "3")).score == 1.0
    assert (await grader.grade("The answer is 3", "3")).score == 0.0


async def test_without_a_pool_what_is_not_decided_is_wrong_and_says_so() -> None:
    grade = await MathGrader(None).grade(ALGEBRA, "1/2")
    assert grade.score == 0.0
    assert "not read here" in grade.reason


async def test_a_closed_pool_is_nobodys_wrong_answer() -> None:
    async with WorkerPool(1, spares=0) as pool:
        grader = MathGrader(pool)
    with pytest.raises(PoolClosed):
        await grader.grade(ALGEBRA, "1/2")


async def check_the_ways_to_decide(pool: WorkerPool) -> None:
    grader = MathGrader(pool, budget=20.0)
    quick = await grader.grade(r"It is \boxed{\frac{2}{4}}.", "1/2")
    assert (quick.score, quick.failure) == (1.0, None)
    assert quick.details == {"found": r"\frac{2}{4}", "by": "boxed"}
    assert quick.reason == r"\frac{2}{4} = 1/2: equal"
    assert (await grader.grade(r"It is \boxed{\frac{2}{5}}.", "1/2")).score == 0.0
    assert (grader.counts.graded, grader.counts.quick) == (2, 2)
    slow = await grader.grade(ALGEBRA, r"\frac{1}{2}")
    assert (slow.score, slow.reason) == (1.0, r"\int_0^1 x\,dx = \frac{1}{2}: by computer algebra")
    assert (await grader.grade(ALGEBRA, "3")).score == 0.0
    assert (grader.counts.graded, grader.counts.quick) == (4, 2)


async def check_that_a_budget_kills_and_is_counted(pool: WorkerPool) -> None:
    budget = 0.8
    grader = MathGrader(pool, budget=budget)
    began = time.monotonic()
    grade = await grader.grade(SLOW, "5")
    took = time.monotonic() - began
    assert (grade.score, grade.failure, grade.metrics) == (0.0, "budget", {"grading_failed": 1.0})
    assert grade.reason == "counts as wrong: it took more than the budget of 0.8 s"
    assert budget <= took < budget * 1.2
    assert grader.counts.over_budget == 1
    with pytest.raises(BudgetExceeded, match=r"exceeded its budget of 0\.1 s"):
        await MathGrader(pool, budget=0.1, on_failure="raise").grade(SLOW, "5")


async def check_that_a_death_is_a_wrong_answer(pool: WorkerPool) -> None:
    grader = MathGrader(pool, budget=30.0)
    result: list[Grade] = []

    async def grade() -> None:
        result.append(await grader.grade(SLOW, "5"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(grade)
        while not pool._busy:  # noqa: ASYNC110  (a worker takes the job within milliseconds)
            await anyio.sleep(0.01)
        (busy,) = pool._busy
        os.kill(busy._process.pid, signal.SIGKILL)
    assert (result[0].score, result[0].failure) == (0.0, "died")
    assert grader.counts.died == 1


async def check_pathological_answers(pool: WorkerPool) -> None:
    budget = 0.5
    grader = MathGrader(pool, budget=budget)
    async with ticking() as gap:
        for answer in PATHOLOGICAL:
            for reference in ("5", "x^2+1"):
                began = time.monotonic()
                assert (await grader.grade(answer, reference)).score == 0.0
                assert time.monotonic() - began < budget * 1.2
    assert grader.counts.over_budget <= 2
    assert gap.worst < 0.25  # beside other work on the machine; the benchmark has the figure


async def test_with_workers(anyio_backend: str) -> None:
    async with WorkerPool(1, spares=1, preload=PRELOAD) as pool:
        await check_the_ways_to_decide(pool)
        if anyio_backend == "asyncio":  # starting a worker costs seconds: once is enough for the rest
            await check_pathological_answers(pool)
            await check_that_a_budget_kills_and_is_counted(pool)
            await check_that_a_death_is_a_wrong_answer(pool)


def test_under_simulation_it_runs_inline() -> None:
    async def program() -> tuple[float, float]:
        async with open_math_grader(workers=2) as grader:
            return (await grader.grade(ALGEBRA, "1/2")).score, (await grader.grade(r"\boxed{3}", "4")).score

    report = simulate(program)
    assert report.unwrap() == (1.0, 0.0)
    assert report.seconds == 0.0


class Sum(ProblemEnv):
    def question(self) -> str:
        return "2 + 3?"

    async def grade(self, answer: str) -> Grade:  # type: ignore[override]
        return await MathGrader(None).grade(answer, "5")


async def test_a_grade_goes_into_metrics_and_logs() -> None:
    tokenizer = make_tokenizer()
    env = Sum(get_renderer("role_colon", tokenizer))
    await env.reset()
    tokens = np.array(tokenizer.encode(" \\boxed{5}\n\nUser:").ids, np.int32)
    step = await env.step(Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0))
    assert step.reward == 1.0
    assert step.metrics == {"correct": 1.0, "format": 1.0, "grading_failed": 0.0}
    assert step.logs["grade"] == "5 = 5: equal"


def test_a_budget_is_positive() -> None:
    with pytest.raises(ValueError, match="budget must be above 0"):
        MathGrader(None, budget=0.0)
