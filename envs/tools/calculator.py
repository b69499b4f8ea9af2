"""Arithmetic with a calculator: sums too long to do in one's head, and a tool that does them.

User: What is 4837 * 529?
Assistant: calculate(left=4837, operation="multiply", right=529)
Tool: 2558773
Assistant: 2558773
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs

from engine.rendering import Message, Renderer, system, user
from envs.arithmetic import Difficulty, Operation, Problem, final_number
from envs.contracts import GroupBuilder
from envs.tools.agent import ToolEnv, ToolGroup, ToolLimits, ToolRewards
from envs.tools.results import ToolError
from envs.tools.tool import tool
from envs.tools.toolbox import Toolbox

WORDING = "What is {}?"
LARGEST = 10**100
"""Numbers beyond it are refused: Python would count on, and a policy that is paid for nothing else might let it."""


@tool(runs="loop")
def calculate(left: int, operation: Operation, right: int) -> int:
    """Does arithmetic with whole numbers.

    Args:
        left: the first number.
        operation: what to do.
        right: the second number.
    """
    if max(abs(left), abs(right)) > LARGEST:
        raise ToolError("the calculator takes numbers of up to 100 digits")
    return Problem(operation, left, right).answer


TOOLBOX = Toolbox([calculate])
"""Without a state of its own, so one serves all episodes."""


def asked(problem: Problem, instruction: str | None = None) -> list[Message]:
    """How a problem is asked. `instruction`: a system message before it."""
    before = [] if instruction is None else [system(instruction)]
    return [*before, user(WORDING.format(problem))]


@attrs.frozen
class CalculatorGroups:
    """A dataset of groups: problem `index`, attempted by `group_size` members with a calculator each."""

    renderer: Renderer
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(("add", "subtract", "multiply"), digits=3))
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    count: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    """Problems in all. They are made when asked for, so a large number costs nothing."""
    seed: int = 0
    limits: ToolLimits = attrs.field(factory=lambda: ToolLimits(max_turns=4, calls_per_answer=4))
    rewards: ToolRewards = attrs.field(factory=ToolRewards)
    instruction: str | None = None
    """A system message; None: there is none beside what the model's family says of tools."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        problem = self.difficulty.draw(self.seed, index)
        tags = ("calculator", *self.difficulty.tags(problem)[1:2])
        return ToolGroup(partial(self._env, problem), self.group_size, tags)

    def _env(self, problem: Problem) -> ToolEnv:
        def grade(answer: str) -> float:
            return float(final_number(answer) == problem.answer)

        return ToolEnv(
            self.renderer,
            asked(problem, self.instruction),
            TOOLBOX,
            grade,
            limits=self.limits,
            rewards=self.rewards,
            reference=str(problem.answer),
        )


def groups(
    renderer: Renderer,
    *,
    group_size: int,
    seed: int,
    operations: Sequence[Operation] = ("add", "subtract", "multiply"),
    digits: int = 3,
    max_turns: int = 4,
    problems: int = 100_000,
) -> CalculatorGroups:
    """Arithmetic with a calculator, by name (`envs.registry`)."""
    return CalculatorGroups(
        renderer,
        Difficulty(tuple(operations), digits=digits),
        group_size,
        problems,
        seed,
        ToolLimits(max_turns=max_turns, calls_per_answer=4),
    )
