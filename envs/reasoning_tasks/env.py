"""Reasoning-gym's tasks as an environment: the question, an answer, the task's own score."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from engine.backends.values import Completion
from engine.rendering import Message, Renderer, system, user
from engine.runtime.jobs import BudgetExceeded, JobError, JobFailed, PoolClosed
from engine.runtime.processes import WorkerPool
from envs.contracts import Step
from envs.grading.extraction import extract
from envs.grading.grade import Failure, Grade
from envs.problem import ProblemEnv
from envs.reasoning_tasks.work import Item, Variant, score

INSTRUCTION = "\n\nPut your final answer between <answer> and </answer>."
LONGEST_ANSWER = 20_000
"""Characters of an answer that is scored, from its end."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


@attrs.frozen
class ReasoningForm:
    """How problems are asked, and in which form an answer is wanted."""

    instruction: str = INSTRUCTION
    """What is said behind each question."""
    system: str | None = None
    """A message before it; None: none."""
    tags: bool = True
    """The answer stands between <answer> and </answer>; otherwise it is the whole text, or what is boxed."""
    format_penalty: float = attrs.field(default=0.1, validator=attrs.validators.ge(0))
    """Taken from the reward of an answer that was cut off, or has no tags where it should."""
    partial_credit: bool = True
    """Scores between 0 and 1 count as they are; otherwise only a whole success does."""
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Longest answer, in tokens; None: the rollout's own limit."""


@attrs.frozen
class Scorer:
    """The tasks' own scorers, in worker processes."""

    pool: WorkerPool
    budget: float = 2.0
    """Seconds that scoring one answer may take."""

    async def grade(self, variant: Variant, item: Item, answer: str) -> Grade:
        """An answer whose scoring takes longer than its budget, or fails, is wrong, and says so. Raises PoolClosed."""
        try:
            given, how = await self.pool.run(score, variant, item.entry, answer[-LONGEST_ANSWER:], budget=self.budget)
        except PoolClosed:
            raise
        except JobError as error:
            return Grade(0.0, f"counts as wrong: {_short(error)}", failure=_failure(error))
        return Grade(given, how)


def _failure(error: JobError) -> Failure:
    return "budget" if isinstance(error, BudgetExceeded) else "error" if isinstance(error, JobFailed) else "died"


def _short(error: JobError) -> str:
    return f"the scorer raised {error.kind}: {error.message[:200]}" if isinstance(error, JobFailed) else str(error)


class ReasoningEnv(ProblemEnv):
    """One attempt at a problem. Metrics: `correct` (the score), `format`, `grading_failed`, `level`."""

    def __init__(self, renderer: Renderer, variant: Variant, item: Item, scorer: Scorer, form: ReasoningForm) -> None:
        super().__init__(renderer)
        self.item = item
        self._variant = variant
        self._scorer = scorer
        self._form = form
        self.format_penalty = form.format_penalty
        self.max_tokens = form.max_tokens

    def question(self) -> str:
        """The problem, with the instruction behind it."""
        return self.item.question + self._form.instruction

    def messages(self) -> Sequence[Message]:
        """System message and question."""
        shown = [] if self._form.system is None else [system(self._form.system)]
        return [*shown, user(self.question())]

    def reference(self) -> str | None:
        """A right answer, where the task knows one."""
        return self.item.answer

    def well_formed(self, answer: str) -> bool:
        """Between tags, where that is wanted."""
        return not self._form.tags or final_answer(answer, tags=True) is not None

    async def grade(self, answer: str) -> Grade:
        """Scores the answer with the task's own scorer."""
        said = final_answer(answer, tags=self._form.tags)
        if not said:
            return Grade(0.0, "there is no answer in it")
        given = await self._scorer.grade(self._variant, self.item, said)
        if not self._form.partial_credit and given.score < 1.0:
            return attrs.evolve(given, score=0.0)
        return given

    async def step(self, completion: Completion) -> Step:
        """Scores the answer; the episode is over."""
        step = await super().step(completion)
        return attrs.evolve(step, metrics={**step.metrics, "level": float(self._variant.level or 0)})


def final_answer(text: str, *, tags: bool) -> str | None:
    """What of a text is the answer: what stands between the last tags; without `tags` also what is boxed, or all of it. None where there is nothing."""
    last = None
    for last in _TAGGED.finditer(text[-LONGEST_ANSWER:]):  # noqa: B007  (the last one)
        pass
    if last is not None:
        return last[1].strip() or None
    if tags:
        return None
    found = extract(text)
    return found.text if found is not None and found.how == "boxed" else text.strip() or None
