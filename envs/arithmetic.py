"""Arithmetic with an adjustable difficulty: two operands, one operation, a whole number as answer.

Problem `index` of a dataset follows from (seed, index) alone, so that any position can be made again when a run is resumed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

from engine.rendering import Message, Renderer, assistant, user
from engine.runtime.seeds import derive_seed
from envs.contracts import GroupBuilder
from envs.problem import ProblemEnv, ProblemGroup

Operation = Literal["add", "subtract", "multiply"]

SIGNS: Mapping[Operation, str] = {"add": "+", "subtract": "-", "multiply": "*"}

_positive = attrs.validators.ge(1)


@attrs.frozen
class Problem:
    """`left` operation `right`, both at least 0."""

    operation: Operation
    left: int
    right: int

    @property
    def answer(self) -> int:
        """The right answer."""
        if self.operation == "add":
            return self.left + self.right
        return self.left - self.right if self.operation == "subtract" else self.left * self.right

    @property
    def carries(self) -> bool:
        """Whether the units spill over: a carry in a sum or product, a borrow in a difference."""
        left, right = self.left % 10, self.right % 10
        if self.operation == "subtract":
            return left < right
        return (left + right if self.operation == "add" else left * right) > 9

    def __str__(self) -> str:
        return f"{self.left} {SIGNS[self.operation]} {self.right}"


@attrs.frozen
class Difficulty:
    """Which problems are drawn."""

    operations: tuple[Operation, ...] = attrs.field(default=("add",), validator=attrs.validators.min_len(1))
    """Drawn with equal chances."""
    digits: int = attrs.field(default=2, validator=_positive)
    """Digits of the left operand: 2 is 10 to 99, 1 is 0 to 9."""
    digits_right: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    """Digits of the right operand; None: as many as the left one has."""
    carry: float | None = attrs.field(
        default=None, validator=attrs.validators.optional([attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    )
    """Share of problems whose units carry (or borrow); None: as chance has it."""

    def draw(self, seed: int, index: int) -> Problem:
        """Problem `index` of the stream `seed`."""
        # Small integers of random.Random are the same on every platform and Python version we support.
        rng = random.Random(derive_seed(seed, index))
        operation = self.operations[rng.randrange(len(self.operations))]
        wanted = None if self.carry is None else rng.random() < self.carry
        while True:
            problem = Problem(operation, _number(rng, self.digits), _number(rng, self.digits_right or self.digits))
            if wanted is None or problem.carries == wanted:
                return problem

    def tags(self, problem: Problem) -> tuple[str, ...]:
        """What a problem is, for metrics by kind: `("arithmetic", "add_2", "carry")`."""
        kind = f"{problem.operation}_{self.digits}"
        if self.digits_right not in (None, self.digits):
            kind += f"x{self.digits_right}"
        return ("arithmetic", kind, *(("carry",) if problem.carries else ()))


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


_MINUS = str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-"})
# A sign counts where no operand stands before it: "7 - 5" holds 7 and 5, "= -5" holds -5.
_NUMBER = re.compile(r"(?<![0-9.,])(-\s?)?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?(?![0-9])")
_OPERAND_BEFORE = re.compile(r"[0-9)]\s*$")
_MARKERS = (
    re.compile(r"\\boxed\s*\{([^{}]*)\}"),
    re.compile(r"(?:answer|result|sum|difference|product|total)\s*(?:is|:|=)\s*([^\n]*)", re.IGNORECASE),
    re.compile(r"=\s*([^\n=]*)"),
)
_MOST_DIGITS = 60


def final_number(text: str) -> int | None:
    """The number that an answer settles on; None where there is none, or where it is not whole.

    The last one in `\\boxed{}`, else the first behind the last "answer is", else behind the last "=", else the last in the text. Thousands' commas, signs
    of several scripts and `52.0` are understood. Nothing is evaluated: `50 + 2` is not 52.
    """
    text = text.translate(_MINUS)
    for marker in _MARKERS:
        found = [numbers for match in marker.finditer(text) if (numbers := _numbers(match[1]))]
        if found:  # behind a marker the answer comes first, and remarks after it
            return _whole(found[-1][0])
    numbers = _numbers(text)
    return _whole(numbers[-1]) if numbers else None


def _numbers(text: str) -> list[tuple[str, str]]:
    """(whole part with sign, decimals) of each number in the text."""
    found = []
    for match in _NUMBER.finditer(text):
        negative = match[1] is not None and not _OPERAND_BEFORE.search(text[: match.start()])
        found.append((("-" if negative else "") + match[2].replace(",", ""), match[3] or ""))
    return found


def _whole(number: tuple[str, str]) -> int | None:
    digits, decimals = number
    if decimals.strip(".0") or len(digits) > _MOST_DIGITS:
        return None
    return int(digits)


class ArithmeticEnv(ProblemEnv):
    """One attempt at an arithmetic problem: 1 for the right number, 0 for any other."""

    def __init__(
        self,
        renderer: Renderer,
        problem: Problem,
        *,
        wording: str = "What is {}?",
        examples: Sequence[Problem] = (),
        hint: str | None = None,
    ) -> None:
        """`wording` is the question, with {} where the problem stands; `examples` are asked and answered before it. `hint`: what a teacher is asked in the
        question's place, made of {question}, {answer} and {solution}; None: the question.
        """
        super().__init__(renderer)
        self.problem = problem
        self.wording = wording
        self.examples = examples
        self.hint = hint

    def question(self) -> str:
        """The problem, worded."""
        return self.wording.format(self.problem)

    def messages(self) -> Sequence[Message]:
        """The examples with their answers, then the question."""
        return [*self._shown(), user(self.question())]

    def teacher_messages(self) -> Sequence[Message] | None:
        """The same with the hint in the question's place, where there is one."""
        if self.hint is None:
            return None
        question, answer = self.question(), self.problem.answer
        told = self.hint.format(question=question, answer=answer, solution=f"{self.problem} = {answer}")
        return [*self._shown(), user(told)]

    def _shown(self) -> list[Message]:
        shown = []
        for example in self.examples:
            shown += [user(self.wording.format(example)), assistant(str(example.answer))]
        return shown

    def grade(self, answer: str) -> float:
        """Compares the number that the answer settles on."""
        return float(final_number(answer) == self.problem.answer)

    def reference(self) -> str:
        """The right number."""
        return str(self.problem.answer)


@attrs.frozen
class ArithmeticGroups:
    """A dataset of groups: problem `index`, attempted by `group_size` members."""

    renderer: Renderer
    difficulty: Difficulty = attrs.field(factory=Difficulty)
    group_size: int = attrs.field(default=8, validator=_positive)
    count: int = attrs.field(default=100_000, validator=_positive)
    """Problems in all. They are made when asked for, so a large number costs nothing."""
    seed: int = 0
    wording: str = "What is {}?"
    examples: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Problems shown with their answers before each question: for a model that would otherwise talk around it."""
    hint: str | None = None
    """What a teacher reads in the question's place, made of {question}, {answer} and {solution}; None: the question."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        problem = self.difficulty.draw(self.seed, index)
        return ProblemGroup(lambda: self._env(problem), self.group_size, self.difficulty.tags(problem))

    def _env(self, problem: Problem) -> ArithmeticEnv:
        # The same for every problem, so that a backend may keep the beginning of the prompt; drawn from a stream that no problem comes from.
        seed = derive_seed(self.seed, -1)
        shown = [self.difficulty.draw(seed, number) for number in range(self.examples)]
        return ArithmeticEnv(self.renderer, problem, wording=self.wording, examples=shown, hint=self.hint)


def groups(
    renderer: Renderer,
    *,
    group_size: int = 8,
    seed: int = 0,
    operations: Sequence[Operation] = ("add",),
    digits: int = 2,
    digits_right: int | None = None,
    carry: float | None = None,
    examples: int = 0,
) -> ArithmeticGroups:
    """What `envs.registry` opens as "arithmetic"."""
    difficulty = Difficulty(tuple(operations), digits, digits_right, carry)
    return ArithmeticGroups(renderer, difficulty, group_size, seed=seed, examples=examples)
