r"""Problems of mathematics: a question, an answer in `\boxed{}`, a grade by value.

    async with open_math_grader(budget=2.0) as grader:
        groups = MathGroups(renderer, read_problems(load_rows("gsm8k")), grader, group_size=8)

The problems may be anything with positions: rows of a data set (`engine.data.read_problems`), or `ArithmeticProblems`, made when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import attrs

from engine.data.problems import Problem
from engine.rendering import Message, Renderer, assistant, system, user
from envs import arithmetic
from envs.contracts import GroupBuilder, GroupDataset
from envs.grading.extraction import extract
from envs.grading.grade import Grade, Grader
from envs.problem import ProblemEnv, ProblemGroup

INSTRUCTION = " Write your final answer in \\boxed{}."
EXAMPLES: Sequence[tuple[str, str]] = (
    (
        "A baker fills 4 trays with 12 rolls each and sells 30 of them. How many rolls are left?",
        "The baker has 4 · 12 = 48 rolls. After 30 are sold, 48 - 30 = 18 are left. \\boxed{18}",
    ),
    (
        "Solve 3x + 5 = 20 for x.",
        "Subtracting 5 gives 3x = 15, and dividing by 3 gives x = 5. \\boxed{5}",
    ),
    (
        "What is the probability that a fair die shows a number above 4?",
        "Of the 6 numbers, 5 and 6 are above 4, so the probability is 2/6. \\boxed{\\frac{1}{3}}",
    ),
)
"""Questions and answers that may be shown before each problem."""

_SPACES = re.compile(r"\s+")


@attrs.frozen
class MathForm:
    """How problems are asked, and in which form an answer is wanted."""

    instruction: str = INSTRUCTION
    """What is said behind each question."""
    system: str | None = None
    """A message before everything else; None: none."""
    few_shot: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.le(len(EXAMPLES))])
    """Worked examples that are shown before each problem."""
    boxed: bool = True
    """Only what stands in \\boxed{} is an answer. Otherwise "the answer is", ####, the last formula and the last number are understood, too."""
    format_penalty: float = attrs.field(default=0.1, validator=attrs.validators.ge(0))
    """Taken from the reward of an answer that was cut off, or is not boxed where it should be."""
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Longest answer, in tokens; None: the rollout's own limit."""


class Problems(Protocol):
    """Problems by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Problem: ...


class MathEnv(ProblemEnv):
    """One attempt at a problem. Metrics: `correct`, `format`, `grading_failed`."""

    def __init__(self, renderer: Renderer, problem: Problem, grader: Grader, form: MathForm | None = None) -> None:
        super().__init__(renderer)
        self.problem = problem
        self._grader = grader
        self._form = form or MathForm()
        self.format_penalty = self._form.format_penalty
        self.max_tokens = self._form.max_tokens

    def question(self) -> str:
        """The problem, with the instruction behind it."""
        return self.problem.question + self._form.instruction

    def messages(self) -> Sequence[Message]:
        """System message, worked examples, the question."""
        shown = [] if self._form.system is None else [system(self._form.system)]
        for question, answer in EXAMPLES[: self._form.few_shot]:
            shown += [user(question + self._form.instruction), assistant(answer)]
        return [*shown, user(self.question())]

    async def grade(self, answer: str) -> Grade:
        """Compares the answer with the reference by value."""
        if self._form.boxed and not _is_boxed(answer):
            return Grade(0.0, "there is nothing in a box")
        return await self._grader.grade(answer, self.problem.answer)

    def well_formed(self, answer: str) -> bool:
        """Boxed, where that is wanted."""
        return not self._form.boxed or _is_boxed(answer)

    def reference(self) -> str:
        """The right answer."""
        return self.problem.answer


def _is_boxed(answer: str) -> bool:
    found = extract(answer)
    return found is not None and found.how == "boxed"


@attrs.frozen
class MathGroups:
    """A dataset of groups: problem `index`, attempted by `group_size` members."""

    renderer: Renderer
    problems: Problems
    grader: Grader
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    form: MathForm = attrs.field(factory=MathForm)
    tags: tuple[str, ...] = ("math",)
    """Tags of every group, before the problem's own (subject, level)."""
    blocking: bool = True
    """A problem may be read from disk, which is not done on the event loop."""

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> GroupBuilder:
        problem = self.problems[index]
        own = (_SPACES.sub("_", tag.strip().lower()) for tag in problem.tags)
        tags = tuple(dict.fromkeys([*self.tags, *(tag for tag in own if tag)]))
        return ProblemGroup(lambda: MathEnv(self.renderer, problem, self.grader, self.form), self.group_size, tags)


@attrs.frozen
class ArithmeticProblems:
    """Sums, differences and products as problems; problem `index` follows from the seed and the index."""

    difficulty: arithmetic.Difficulty = attrs.field(factory=arithmetic.Difficulty)
    count: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    seed: int = 0
    wording: str = "What is {}?"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        problem = self.difficulty.draw(self.seed, index)
        return Problem(self.wording.format(problem), str(problem.answer), tags=self.difficulty.tags(problem)[1:])


@asynccontextmanager
async def groups(
    renderer: Renderer,
    *,
    group_size: int,
    seed: int,
    data: str = "gsm8k",
    split: str = "train",
    boxed: bool = True,
    few_shot: int = 0,
    budget: float = 2.0,
    workers: int | None = None,
) -> AsyncIterator[GroupDataset]:
    """For `envs.registry`: problems of a known data set (gsm8k, math, math500, polaris, deepmath), of any on the hub, or of a local file, in an order that
    follows from the seed."""
    import anyio.to_thread

    from engine.data import load_rows, read_problems
    from envs.grading import open_math_grader

    problems = await anyio.to_thread.run_sync(lambda: read_problems(load_rows(data, split=split)))
    async with open_math_grader(workers=workers, budget=budget) as grader:
        form = MathForm(boxed=boxed, few_shot=few_shot)
        yield MathGroups(renderer, problems.shuffled(seed), grader, group_size, form)
