"""Grades code by running it: a solution and tests go into a sandbox, a verdict comes out.

    async with local.LocalSandbox(library=[JUDGING]) as sandbox:
        verdict = await CodeGrader(sandbox).grade(problem, code)

One run of the sandbox judges one solution, all of its tests. How a solution is kept from its tests is told in `envs.code.judging`. What the sandbox could not run
raises SandboxError, and is no one's wrong answer.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio.lowlevel
import attrs

from envs.code.problem import AssertionTest, CallTest, CodeProblem, OutputTest, Test
from envs.sandbox.port import Limits, RunOutcome, RunRequest, Sandbox

JUDGING = Path(__file__).parent / "judging"
"""The package that judges inside of a sandbox."""

Outcome = Literal["passed", "wrong", "raised", "timed_out", "died", "malformed", "not_run"]
"""passed; wrong result; it raised or exited with an error; too slow; its process ended or killed those around it; an answer that is no data; never tried."""

_positive: Any = attrs.validators.gt(0)
PAUSE_EVERY = 1 << 20
"""Bytes of tests written without letting others have their turn."""
MARGIN = 3.0
"""Seconds beyond the budget for the judging itself."""


@attrs.frozen
class GradingSettings:
    """How code is graded."""

    seconds: float = attrs.field(default=6.0, validator=_positive)
    """CPU seconds that one test may take."""
    budget: float = attrs.field(default=30.0, validator=_positive)
    """Seconds for all tests of one answer; those that come too late are not run, which is no pass."""
    memory: int = attrs.field(default=512, validator=attrs.validators.ge(64))
    """MiB, the judging's own 30 included."""
    processes: int = attrs.field(default=16, validator=attrs.validators.ge(4))
    """Processes and threads of the solution at one time."""
    most_tests: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Most tests of a problem that are run, spread evenly over them; None: all."""
    partial_credit: bool = False
    """The grade is the share of tests that passed. Otherwise it is 1 when all did and 0 when one did not, and the first failure ends the judging."""


@attrs.frozen
class TestResult:
    """What one test said."""

    __test__ = False  # pytest collects classes by their name

    outcome: Outcome
    detail: str = ""
    """What was printed, returned or raised instead, shortened."""


@attrs.frozen
class Verdict:
    """What all tests said."""

    results: Sequence[TestResult]
    ended: str = ""
    """How the run ended where the judging did not come to its end; then no test counts as passed."""

    @property
    def passed(self) -> int:
        """Tests that passed."""
        return sum(result.outcome == "passed" for result in self.results)

    @property
    def all_passed(self) -> bool:
        """Every test passed."""
        return self.passed == len(self.results)

    @property
    def failure(self) -> TestResult | None:
        """The first test that did not pass."""
        return next((result for result in self.results if result.outcome != "passed"), None)

    @property
    def outcome(self) -> Outcome:
        """That of the first test that did not pass; passed where all did."""
        failure = self.failure
        return "passed" if failure is None else failure.outcome

    def grade(self, settings: GradingSettings) -> float:
        """0 to 1."""
        return self.passed / len(self.results) if settings.partial_credit else float(self.all_passed)


class CodeGrader:
    """Grades solutions in a sandbox."""

    def __init__(self, sandbox: Sandbox, settings: GradingSettings | None = None) -> None:
        self._sandbox = sandbox
        self.settings = settings or GradingSettings()

    async def grade(self, problem: CodeProblem, code: str) -> Verdict:
        """The verdict on the code of an answer to the problem. Raises SandboxError."""
        return await self.judge(problem, problem.program(code), self._chosen(problem.tests))

    async def judge(self, problem: CodeProblem, solution: str, tests: Sequence[Test]) -> Verdict:
        """The verdict of these tests on a whole solution."""
        settings = self.settings
        nonce = secrets.token_hex(16)
        task = {
            "nonce": nonce,
            "source": solution,
            "seconds": problem.seconds or settings.seconds,
            "budget": settings.budget,
            "tolerance": problem.tolerance,
            "stop_early": not settings.partial_credit,
        }
        stdin = f'{json.dumps(task)[:-1]}, "tests": [{await _written(tests)}]}}'
        request = RunRequest(
            code="from judging import referee\nreferee.main()\n",
            stdin=stdin,
            files=judging_files(),
            limits=Limits(
                wall_clock=settings.budget + MARGIN,
                cpu=settings.budget + MARGIN,
                memory=settings.memory,
                processes=settings.processes + 4,  # the referee, the nursery, an assertion's process, and one to spare
                disk=64 + (len(stdin) >> 20),
            ),
        )
        return _verdict(await self._sandbox.run(request), nonce, len(tests))

    def _chosen(self, tests: Sequence[Test]) -> Sequence[Test]:
        most = self.settings.most_tests
        if most is None or len(tests) <= most:
            return tests
        return [tests[index * len(tests) // most] for index in range(most)]


@functools.cache
def judging_files() -> Mapping[str, str]:
    """The judging package's files, as a run's."""
    return {f"judging/{path.name}": path.read_text(encoding="utf-8") for path in sorted(JUDGING.glob("*.py"))}


async def _written(tests: Sequence[Test]) -> str:
    """The tests as JSON, one after another; some sets have megabytes of them, and the event loop has others to serve."""
    parts, size = [], 0
    for test in tests:
        parts.append(json.dumps(_as_json(test)))
        size += len(parts[-1])
        if size > PAUSE_EVERY:
            size = 0
            await anyio.lowlevel.checkpoint()
    return ", ".join(parts)


def _as_json(test: Test) -> dict[str, Any]:
    if isinstance(test, OutputTest):
        return {"kind": "stdin", "input": test.input, "expected": test.expected}
    if isinstance(test, CallTest):
        return {"kind": "call", "function": test.function, "arguments": list(test.arguments), "expected": test.expected}
    assert isinstance(test, AssertionTest)  # noqa: S101  (the union's last)
    return {"kind": "assertion", "code": test.code, "exposed": dict(test.exposed), "prelude": test.prelude}


def _verdict(outcome: RunOutcome, nonce: str, tests: int) -> Verdict:
    """The referee's line; where there is none, the solution has brought the judging down, and nothing has passed."""
    for line in reversed(outcome.stdout.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("nonce") == nonce and len(said["results"]) == tests:
            return Verdict([TestResult(*result) for result in said["results"]])
    result = TestResult("timed_out" if outcome.timed_out else "died", f"the run {outcome.reason}")
    return Verdict([result] * tests, ended=outcome.reason)
