"""Programming problems as environments: the policy writes code, the sandbox says what it is worth, and there may be another attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import anyio
import attrs

from engine.backends.values import Completion, ModelInput
from engine.rendering import Message, Renderer, system, user
from engine.rendering.dialogue import Dialogue
from envs.code.extraction import extract_code
from envs.code.grading import CodeGrader, Verdict
from envs.code.problem import AssertionTest, CallTest, CodeProblem, CodeProblems, OutputTest, Test
from envs.contracts import Env, GroupBuilder, Observation, Step

Form = Literal["fenced", "bare"]
"""How an answer holds its code: in a fenced block (the last one counts), or as nothing but code (a fenced block is taken too)."""

FUNCTION = "Write Python. Put all of the code into one block that begins with ```python and ends with ```."
PROGRAM = (
    "Write a Python program that reads the input from stdin and prints the answer to stdout. Put all of the code into one block that begins with "
    "```python and ends with ```."
)
SHOWN = 600
"""Characters of an input or a result in feedback."""


@attrs.frozen
class CodeSettings:
    """How problems are asked and rewarded."""

    form: Form = "fenced"
    """What an answer must look like: fenced (its last fenced block is the code) or bare (all of it is code)."""
    format_penalty: float = attrs.field(default=0.1, validator=attrs.validators.ge(0.0))
    """Taken from the reward of an answer that never ended, or in which no code is found."""
    attempts: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Answers to one problem: a wrong one is told what the tests that it may know said, and may try again. The last one counts."""
    instruction: str | None = None
    """System message; None: none."""


class Verdicts:
    """Verdicts of one group: members that wrote the same code are judged once."""

    def __init__(self, grader: CodeGrader, problem: CodeProblem) -> None:
        self._grader = grader
        self._problem = problem
        self._known: dict[str, Verdict] = {}
        self._running: dict[str, anyio.Event] = {}

    def grade(self, verdict: Verdict) -> float:
        """0 to 1, by the grader's settings."""
        return verdict.grade(self._grader.settings)

    async def of(self, code: str) -> Verdict:
        """The verdict on this code. Raises SandboxError where it could not be run."""
        while code not in self._known:
            if code in self._running:
                await self._running[code].wait()
                continue
            self._running[code] = anyio.Event()
            try:
                self._known[code] = await self._grader.grade(self._problem, code)
            finally:
                self._running.pop(code).set()
        return self._known[code]


class CodeEnv:
    """One episode: as many attempts at a problem as the settings allow.

    The reward comes with the last answer: the grade, less `format_penalty` where that answer had no code or did not end. Metrics of the last step: `correct` (the grade),
    `format`, `tests_passed` (share of the tests), `timed_out`, `attempts`. Logs: question, answer, and what the first test that failed said.
    """

    def __init__(
        self,
        renderer: Renderer,
        problem: CodeProblem,
        verdicts: Verdicts,
        settings: CodeSettings,
        prompt: ModelInput | None = None,
    ) -> None:
        """`prompt`: the problem's, where it has been rendered already."""
        self._dialogue = Dialogue(renderer, messages(problem, settings), prompt=prompt)
        self._stop = renderer.stop_sequences()
        self._problem = problem
        self._verdicts = verdicts
        self._settings = settings
        self._attempt = 0

    @property
    def prompt(self) -> ModelInput:
        """What is asked next."""
        return self._dialogue.prompt

    async def reset(self) -> Observation:
        """The problem."""
        return Observation(self.prompt, self._stop)

    async def step(self, completion: Completion) -> Step:
        """Runs the answer's code. Raises SandboxError where that cannot be done, which is nobody's wrong answer."""
        parsed = self._dialogue.answer(completion.tokens)
        answer = parsed.message.text
        self._attempt += 1
        code = code_of(answer, self._settings.form)
        verdict = None if code is None else await self._verdicts.of(code)
        logs: dict[str, Any] = {"question": self._problem.statement, "answer": answer}
        if self._problem.reference is not None:
            logs["reference"] = self._problem.reference
        failure = None if verdict is None else verdict.failure
        if failure is not None:
            logs["failure"] = f"{failure.outcome}: {failure.detail}"
        solved = verdict is not None and verdict.all_passed
        if not solved and self._attempt < self._settings.attempts:
            self._dialogue.extend(user(feedback(self._problem, verdict)))
            return Step(observation=Observation(self.prompt, self._stop), logs=logs)
        grade = 0.0 if verdict is None else self._verdicts.grade(verdict)
        formed = parsed.ok and code is not None
        metrics = {
            "correct": grade,
            "format": float(formed),
            "tests_passed": 0.0 if verdict is None else verdict.passed / len(verdict.results),
            "timed_out": float(failure is not None and failure.outcome == "timed_out"),
            "attempts": float(self._attempt),
        }
        return Step(grade if formed else grade - self._settings.format_penalty, None, metrics, logs)


def messages(problem: CodeProblem, settings: CodeSettings) -> list[Message]:
    """How a problem is asked."""
    asked = problem.statement
    if settings.form == "fenced":
        whole = any(isinstance(test, OutputTest) for test in problem.tests)
        asked = f"{asked.rstrip()}\n\n{PROGRAM if whole else FUNCTION}"
    before = [] if settings.instruction is None else [system(settings.instruction)]
    return [*before, user(asked)]


def code_of(answer: str, form: Form) -> str | None:
    """The code in an answer; None where there is none."""
    found = extract_code(answer)
    if found is None and form == "bare" and answer.strip():
        return answer
    return found


def feedback(problem: CodeProblem, verdict: Verdict | None) -> str:
    """What a wrong answer is told: of the tests that the answerer may know, everything; of the others, that there are some."""
    if verdict is None:
        return "There is no code in a fenced block in this answer. Try again."
    for test, result in zip(problem.tests, verdict.results, strict=False):
        if result.outcome not in ("passed", "not_run") and test.public:
            return f"{_told(test)}\n{_SHOWN[result.outcome]} {result.detail}".rstrip() + "\nTry again."
    return f"This does not pass all of the hidden tests{_HIDDEN.get(verdict.outcome, '')}. Try again."


_HIDDEN = {
    "wrong": ": one result is wrong",
    "raised": ": one ends with an error",
    "timed_out": ": one takes too long",
    "died": ": one ends too early",
    "malformed": ": one result is no plain data",
}


def _told(test: Test) -> str:
    if isinstance(test, OutputTest):
        return f"For the input\n{_short(test.input)}\nthe program should print\n{_short(test.expected)}"
    if isinstance(test, CallTest):
        arguments = ", ".join(map(repr, test.arguments))
        return f"{test.function}({_short(arguments)}) should return {_short(repr(test.expected))}."
    assert isinstance(test, AssertionTest)  # noqa: S101  (the union's last)
    return f"This test fails:\n{_short(test.code)}"


_SHOWN = {
    "wrong": "Instead, it",
    "raised": "It raised an error:",
    "timed_out": "It is too slow:",
    "died": "It ended in the middle:",
    "malformed": "It gave something that is no plain data:",
}


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}\n...\n{text[-SHOWN // 2 :]}"


class CodeGroup(GroupBuilder):
    """Several episodes of one problem."""

    def __init__(
        self, renderer: Renderer, problem: CodeProblem, grader: CodeGrader, size: int, settings: CodeSettings
    ) -> None:
        self._renderer = renderer
        self._problem = problem
        self._grader = grader
        self._size = size
        self._settings = settings
        self.tags = problem.tags
        self.single_turn = settings.attempts == 1

    async def make_envs(self) -> Sequence[Env]:
        """The members; the prompt is rendered once, and equal answers are judged once."""
        verdicts = Verdicts(self._grader, self._problem)
        first = CodeEnv(self._renderer, self._problem, verdicts, self._settings)
        return [
            first,
            *(
                CodeEnv(self._renderer, self._problem, verdicts, self._settings, first.prompt)
                for _ in range(self._size - 1)
            ),
        ]


@attrs.frozen
class CodeGroups:
    """A dataset of groups: problem `index`, attempted by `group_size` members."""

    renderer: Renderer
    problems: CodeProblems
    grader: CodeGrader
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    settings: CodeSettings = attrs.field(factory=CodeSettings)

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> GroupBuilder:
        return CodeGroup(self.renderer, self.problems[index], self.grader, self.group_size, self.settings)
