"""Questions with a short answer that is known: a number, or a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from engine.rendering import Renderer
from envs.arithmetic import final_number
from envs.contracts import GroupBuilder
from envs.problem import ProblemEnv, ProblemGroup


def same_answer(given: str, answer: str) -> bool:
    """Whether a text comes to the known answer: the number it settles on where that is a whole number, otherwise the same words, whatever their case, at its end."""
    wanted = final_number(answer)
    if wanted is not None and answer.strip().strip("$.").replace(",", "").lstrip("+-−").isdigit():
        return final_number(given) == wanted
    said, known = " ".join(given.casefold().split()).rstrip("."), " ".join(answer.casefold().split()).rstrip(".")
    return said == known or (bool(known) and said.endswith((f" {known}", f":{known}")))


class Question(Protocol):
    """`engine.data.Problem`, or anything with these."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def tags(self) -> tuple[str, ...]: ...


class ShortAnswerEnv(ProblemEnv):
    """One attempt: 1 for the known answer, 0 for any other."""

    def __init__(self, renderer: Renderer, problem: Question) -> None:
        super().__init__(renderer)
        self.problem = problem

    def question(self) -> str:
        """The question."""
        return self.problem.question

    def grade(self, answer: str) -> float:
        """See `same_answer`."""
        return float(same_answer(answer, self.problem.answer))

    def reference(self) -> str:
        """The known answer."""
        return self.problem.answer


@attrs.frozen(eq=False)
class ShortAnswerGroups:
    """A dataset of groups: question `index`, attempted by `group_size` members."""

    renderer: Renderer
    problems: Sequence[Question]
    group_size: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> GroupBuilder:
        problem = self.problems[index]
        return ProblemGroup(lambda: ShortAnswerEnv(self.renderer, problem), self.group_size, problem.tags)
