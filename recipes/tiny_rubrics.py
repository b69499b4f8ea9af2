"""Sums with a rubric, for `recipes.rubric` without data: a pupil who forgets to carry and talks, and a judge by rule who reads and writes what a model would.

The judge by rule stands in for a model that cannot be had everywhere. It is asked in the same words, reads conversation, answer and criterion out of them, and replies in
the same form; it knows the two criteria below and no other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from engine.completion import ScriptedCompleter
from engine.rendering import Message, assistant, user
from engine.runtime.seeds import derive_seed
from envs.arithmetic import Difficulty, final_number
from envs.grading.rubrics import Rubric, RubricItem, RubricTask
from recipes.tiny import forgetful

if TYPE_CHECKING:
    from collections.abc import Callable

WORDING = "What is {}?"
RIGHT = "The answer gives the right sum."
PLAIN = "The answer is the number alone, without any other word."
RUBRIC = Rubric([RubricItem(RIGHT, 3.0, name="right"), RubricItem(PLAIN, 1.0, name="plain")])
FORGETS_TO_CARRY = 0.65
TALKS = 0.5
TALK = ("It is {}, I think.", "Maybe {}.", "{} or so.")


@attrs.frozen
class SumTasks:
    """Sums to be graded by the rubric, made when asked for."""

    difficulty: Difficulty
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RubricTask:
        if not 0 <= index < self.count:
            raise IndexError(f"task {index} of {self.count}")
        return RubricTask((user(WORDING.format(self.difficulty.draw(self.seed, index))),), RUBRIC, ("rubric", "sums"))


def worked(difficulty: Difficulty, seed: int, number: int) -> Sequence[Message]:
    """Worked example `number` of the pupil."""
    rng = random.Random(derive_seed(seed, number, 1))
    problem = attrs.evolve(difficulty, carry=0.8).draw(seed, number)
    answer = forgetful(problem) if problem.carries and rng.random() < FORGETS_TO_CARRY else problem.answer
    said = rng.choice(TALK) if rng.random() < TALKS else "{}"
    return [user(WORDING.format(problem)), assistant(said.format(answer))]


def _right(question: str, answer: str) -> bool:
    terms = re.search(r"(\d+) \+ (\d+)", question)
    return terms is not None and final_number(answer) == int(terms[1]) + int(terms[2])


def _plain(question: str, answer: str) -> bool:  # noqa: ARG001  (a rule's signature)
    return answer.strip().isdecimal()


RULES: dict[str, Callable[[str, str], bool]] = {RIGHT: _right, PLAIN: _plain}


def judge_by_rule() -> ScriptedCompleter:
    """The judge who stands in for a model."""

    def reply(messages: Sequence[Message]) -> str:
        said = messages[-1].text
        question, answer, criterion = (_between(said, tag) for tag in ("conversation", "answer", "criterion"))
        rule = RULES.get(criterion)
        if rule is None:
            return "I know no rule for that."
        return f"By rule. <score>{int(rule(question, answer))}</score>"

    return ScriptedCompleter(reply)


def _between(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}(\w*)>\n(.*?)\n</{tag}\1>", text, re.DOTALL)
    return found[2] if found else ""
