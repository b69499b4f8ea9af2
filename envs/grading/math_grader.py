r"""Grading answers of mathematics, within a budget that kills.

    answer text ──extract──▶ 2\sqrt{2} ──decide (here, bounded steps)──▶ True / False
                                              │ neither
                                              ▼
                                   a worker process, `budget` seconds:
                                   more steps, fifty digits, sympy      ──▶ True / False, or killed

    async with open_math_grader() as grader:
        grade = await grader.grade(r"... so it is \boxed{\sqrt{8}}.", r"2\sqrt{2}")

Most answers are decided at once, on the event loop, in bounded steps (well below a millisecond each); the others cost a round trip and what sympy takes. An
answer that takes longer than its budget, or takes its worker down, is wrong, says why, and is counted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs

from engine.runtime.jobs import BudgetExceeded, JobError, JobFailed, PoolClosed, WorkerDied
from engine.runtime.processes import WorkerPool
from engine.runtime.turns import TurnLimit
from envs.grading.extraction import Found, extract
from envs.grading.grade import Failure, Grade
from envs.grading.mathematics.deciding import QUICK_LENGTH, Decision, decide, hopeless
from envs.grading.mathematics.lexing import LONGEST, Unreadable
from envs.grading.mathematics.reading import read
from envs.grading.mathematics.symbolic import settle
from envs.grading.mathematics.trees import Words

PRELOAD = ("envs.grading.mathematics.warm",)
"""What a pool's workers should import when they start, so that no answer pays for importing sympy out of its budget: `WorkerPool(preload=PRELOAD)`."""

AT_ONCE = 8
"""Answers that are looked at in one turn of the event loop: what is decided there takes up to some five milliseconds."""


@attrs.define
class MathCounts:
    """What a grader has done so far."""

    graded: int = 0
    quick: int = 0
    """Of those: decided on the event loop."""
    no_answer: int = 0
    """Of those: without anything that looks like an answer."""
    over_budget: int = 0
    died: int = 0
    errors: int = 0


class MathGrader:
    """Grades answers against references: 1 where they say the same, 0 where not.

    `budget`: seconds that one answer may take in a worker. `on_failure`: what an answer is whose grading fails: wrong (and counted), or an error that is
    raised. `pool` None: nothing but what can be decided at once; what cannot is wrong, and says so.
    """

    def __init__(
        self,
        pool: WorkerPool | None,
        *,
        budget: float = 2.0,
        on_failure: Literal["wrong", "raise"] = "wrong",
        require_boxed: bool = False,
    ) -> None:
        """`require_boxed`: only what stands in `\\boxed{}` is an answer."""
        if budget <= 0:
            raise ValueError(f"MathGrader: budget must be above 0 seconds, not {budget}")
        self._pool = pool
        self._budget = budget
        self._on_failure = on_failure
        self._require_boxed = require_boxed
        self._turns = TurnLimit(AT_ONCE)
        self.counts = MathCounts()

    async def grade(self, answer: str, reference: str | Sequence[str]) -> Grade:
        """Finds the answer in a text (`envs.grading.extraction`), and compares it. Of several references any will do.

        Raises JobError under `on_failure="raise"`, PoolClosed.
        """
        await self._turns.wait()
        found = extract(answer)
        if found is None or (self._require_boxed and found.how != "boxed"):
            self.counts.graded += 1
            self.counts.no_answer += 1
            return Grade(0.0, "there is no answer in it")
        references = [reference] if isinstance(reference, str) else list(reference)
        best: Grade | None = None
        for number, each in enumerate(references):
            if number:
                await self._turns.wait()
            grade = await self._compare(found, bare_reference(each))
            if grade.score > 0:
                return grade
            best = best or grade
        if best is None:
            raise ValueError("there is no reference to compare the answer with")
        return best

    async def _compare(self, found: Found, reference: str) -> Grade:
        self.counts.graded += 1
        text = found.text
        if found.number is not None and not _is_mathematics(text) and _is_mathematics(reference):
            text = found.number
        details = {"found": text[:200], "by": found.how}
        if max(len(text), len(reference)) <= QUICK_LENGTH:
            decision = decide(text, reference)
        else:
            same = text.strip() == reference.strip()
            readable = max(len(text), len(reference)) <= LONGEST
            decision = Decision(same or None, "written the same" if same else "too long", readable=readable)
        if decision.verdict is not None:
            self.counts.quick += 1
            return _grade(decision.verdict, text, reference, decision.reason, details)
        why_not = None if decision.readable else hopeless(text) or hopeless(reference)
        if self._pool is None or why_not is not None:
            reason = decision.reason if why_not is None else f"{decision.reason}; {why_not}"
            return _grade(bool(decision.leaning), text, reference, reason, details)
        return await self._settle(self._pool, text, reference, details)

    async def _settle(self, pool: WorkerPool, text: str, reference: str, details: dict[str, Any]) -> Grade:
        try:
            equal, reason = await pool.run(settle, text, reference, budget=self._budget)
        except PoolClosed:
            raise
        except JobError as error:
            failure = self._count(error)
            if self._on_failure == "raise":
                raise
            told = {
                "budget": f"it took more than the budget of {self._budget:g} s",
                "died": "the process that graded it died",
                "error": f"grading raised {error.kind}: {error.message[:200]}"
                if isinstance(error, JobFailed)
                else str(error),
            }[failure]
            return Grade(0.0, f"counts as wrong: {told}", details, failure)
        return _grade(equal, text, reference, reason, details)

    def _count(self, error: JobError) -> Failure:
        if isinstance(error, BudgetExceeded):
            self.counts.over_budget += 1
            return "budget"
        if isinstance(error, WorkerDied):
            self.counts.died += 1
            return "died"
        self.counts.errors += 1
        return "error"


@asynccontextmanager
async def open_math_grader(
    *,
    workers: int | None = None,
    budget: float = 2.0,
    on_failure: Literal["wrong", "raise"] = "wrong",
    require_boxed: bool = False,
) -> AsyncIterator[MathGrader]:
    """A grader with worker processes of its own, warmed up (which takes a second or two); they end with the block.

    `workers`: processes; None: one for each CPU. Raises ImportError naming the extra where sympy or math-verify is not installed.
    """
    require_math()
    async with WorkerPool(workers, preload=PRELOAD) as pool:
        yield MathGrader(pool, budget=budget, on_failure=on_failure, require_boxed=require_boxed)


def require_math() -> None:
    """Raises ImportError, saying what to install, where the extra is missing."""
    for module in ("sympy", "math_verify"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"grading mathematics needs {module}: pip install 'callsheet[math]'")


def bare_reference(reference: str) -> str:
    """A reference without what data sets put around it: GSM8K's ####, a solution that ends in a box."""
    if "####" in reference or "\\boxed" in reference or "\\fbox" in reference:
        found = extract(reference)
        if found is not None:
            return found.text
    return reference


def _is_mathematics(text: str) -> bool:
    try:
        return not isinstance(read(text).tree, Words)
    except Unreadable:
        return False


def _grade(equal: bool, text: str, reference: str, reason: str, details: dict[str, Any]) -> Grade:
    sign = "=" if equal else "≠"
    return Grade(float(equal), f"{text[:80]} {sign} {reference[:80]}: {reason}", details)
