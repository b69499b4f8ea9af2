"""A taskset of the `verifiers` package, made on the spot: sums of which all carry. Importing this module imports `verifiers`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from envs.arithmetic import Difficulty, final_number

CARRIES = Difficulty(digits=2, digits_right=1, carry=1.0)
COUNT = 2000


class SumData(vf.TaskData):  # type: ignore[misc]  # verifiers is no dependency, so its classes are unknown here
    """A sum, and what comes out."""

    answer: int


class Sum(vf.Task[SumData]):  # type: ignore[misc]
    """Right or wrong."""

    @vf.reward(weight=1.0)  # type: ignore[untyped-decorator]
    async def right(self, trace: Any) -> float:
        """1 for the right number."""
        return float(final_number(trace.last_reply) == self.data.answer)


class Sums(vf.Taskset[Sum]):  # type: ignore[misc]
    """Two thousand sums, always the same."""

    def load(self) -> Iterator[Sum]:
        """The tasks, in order."""
        for number in range(COUNT):
            problem = CARRIES.draw(0, number)
            yield Sum(SumData(prompt=f"What is {problem}?", answer=problem.answer), self.config.task)
