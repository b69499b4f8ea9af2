"""Programming problems: a statement, tests, and how an answer's code becomes the program that is tested."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs


@attrs.frozen
class OutputTest:
    """The program reads `input` and must print `expected`: line by line, spaces at the ends of lines aside, numbers by value."""

    input: str
    expected: str
    public: bool = False
    """Whether the answerer may know it."""


@attrs.frozen
class CallTest:
    """`function(*arguments)` must return `expected`; all of them JSON values. The function may be a method of a class `Solution`."""

    function: str
    arguments: Sequence[Any]
    expected: Any
    public: bool = False


@attrs.frozen
class AssertionTest:
    """Code that calls the solution's functions and raises where they are wrong, e.g. `assert gcd(8, 12) == 4`.

    It runs beside the solution, not in its process, and sees only `exposed` of it.
    """

    code: str
    exposed: Mapping[str, str]
    """Names in the code, each with the solution's name that it stands for: {"candidate": "gcd"}."""
    prelude: str = ""
    """Code before it that is the problem's own: imports and helpers. It does not see the solution."""
    public: bool = False


Test = OutputTest | CallTest | AssertionTest


@attrs.frozen
class CodeProblem:
    """One problem."""

    id: str
    statement: str
    """What is asked, as the policy reads it."""
    tests: Sequence[Test] = attrs.field(validator=attrs.validators.min_len(1))
    entry_point: str | None = None
    """The function that is asked for; None: a whole program, or a class `Solution`."""
    stub: str = ""
    """Code that the answer goes on from: imports, helpers, and the head of the function with its docstring."""
    prelude: str = ""
    """Put before every solution: imports that contestants may take for granted."""
    tags: tuple[str, ...] = ("code",)
    tolerance: float | None = None
    """Largest error of a number, absolute and relative; None: none."""
    seconds: float | None = None
    """CPU seconds that one test may take; None: the grader's setting."""
    reference: str | None = None
    """A right solution, for people and for tests of the tests."""

    def program(self, code: str) -> str:
        """The solution that is tested: the answer's code behind the prelude and, where it does not repeat it, the stub.

        An answer that defines the entry point keeps the stub's imports and helpers; any other goes on where the stub ends.
        """
        if self.entry_point is None or not self.stub:
            return f"{self.prelude}\n{code}" if self.prelude else code
        if defines(code, self.entry_point):
            code = f"{_before(self.stub, self.entry_point)}\n{code}"
        else:
            code = self.stub + code if self.stub.endswith("\n") else f"{self.stub}\n{code}"
        return f"{self.prelude}\n{code}" if self.prelude else code


class CodeProblems(Protocol):
    """Problems by position: a list, `ToyProblems`, or what `read_code_problems` gives."""

    def __getitem__(self, index: int, /) -> CodeProblem: ...

    def __len__(self) -> int: ...


def defines(code: str, name: str) -> bool:
    """Whether the code defines a function or class of that name, at any indentation; a look at the text, so that code with errors has an answer too."""
    return re.search(rf"^\s*(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def _before(stub: str, name: str) -> str:
    """The stub up to the function that is asked for."""
    match = re.search(rf"^(?:@.*\n)*(?:async\s+)?def\s+{re.escape(name)}\b", stub, re.MULTILINE)
    return stub[: match.start()] if match else stub


def called_names(code: str) -> list[str]:
    """Names that the code calls and that neither it nor Python defines, the first first. Empty where it cannot be parsed."""
    import builtins

    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    called = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [name for name in dict.fromkeys(called) if name not in stored and not hasattr(builtins, name)]


def defined_names(code: str) -> list[str]:
    """Functions and classes at the top level. Empty where the code cannot be parsed."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds)]
