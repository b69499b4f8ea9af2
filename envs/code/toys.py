"""Small functions, described in a few words: for runs without data. What is right is decided by running the code, and there are many ways to write it.

f(x) is 7 less than x. Write f in Python.              def f(x): return x - 7
f(x) is the larger of x and 7. Write f in Python.      def f(x): return max(x, 7)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import attrs

from engine.runtime.seeds import derive_seed
from envs.code.problem import CallTest, CodeProblem

INPUTS = (-13, -7, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 23)
"""Every function is tried on all of them: no other task's solution agrees on each."""
HEAD = "def f(x):"


@attrs.frozen
class Task:
    """A kind of function."""

    wording: str
    """The task in words, with {n} for the number."""
    right: tuple[str, ...]
    """Expressions that compute it."""
    compute: Callable[[int, int], int]


TASKS: Mapping[str, Task] = {
    "more": Task("{n} more than x", ("x + {n}", "{n} + x"), lambda x, n: x + n),
    "less": Task("{n} less than x", ("x - {n}", "-{n} + x"), lambda x, n: x - n),
    "from": Task("{n} minus x", ("{n} - x", "-x + {n}"), lambda x, n: n - x),
    "times": Task("{n} times x", ("x * {n}", "{n} * x"), lambda x, n: x * n),
    "larger": Task("the larger of x and {n}", ("max(x, {n})", "max({n}, x)"), max),
    "smaller": Task("the smaller of x and {n}", ("min(x, {n})", "min({n}, x)"), min),
    "rest": Task("the rest of x by {n}", ("x % {n}",), lambda x, n: x % n),
    "whole": Task("x divided by {n}, rounded down", ("x // {n}",), lambda x, n: x // n),
    "equal": Task("1 if x is {n}, else 0", ("int(x == {n})", "+(x == {n})"), lambda x, n: int(x == n)),
    "distance": Task("how far x is from {n}", ("abs(x - {n})", "abs({n} - x)"), lambda x, n: abs(x - n)),
}
NUMBERS = range(2, 10)


def toy_problem(kind: str, number: int) -> CodeProblem:
    """The problem of this kind with this number."""
    task = TASKS[kind]
    return CodeProblem(
        id=f"toys/{kind}-{number}",
        statement=f"f(x) is {task.wording.format(n=number)}. Write f in Python.",
        tests=[CallTest("f", [x], task.compute(x, number), public=x == INPUTS[-1]) for x in INPUTS],
        entry_point="f",
        tags=("code", kind),
        reference=written(task.right[0], number),
    )


def written(expression: str, number: int) -> str:
    """The whole function."""
    return f"{HEAD} return {expression.format(n=number)}"


@attrs.frozen
class ToyProblems:
    """Problem `index` follows from (seed, index) alone."""

    count: int = attrs.field(default=10_000, validator=attrs.validators.ge(1))
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> CodeProblem:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        return toy_problem(*drawn(self.seed, index))


def drawn(seed: int, index: int) -> tuple[str, int]:
    """Kind and number of problem `index` of the stream `seed`."""
    rng = random.Random(derive_seed(seed, index))
    return rng.choice(list(TASKS)), rng.choice(NUMBERS)
