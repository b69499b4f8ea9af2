"""Single-turn problems: a question, an answer, a grade.

    question() --renderer--> prompt --policy--> tokens --renderer--> answer --grade()--> reward

A `ProblemEnv` is one attempt at one problem; a `ProblemGroup` is as many attempts as a group has members. They share the prompt, which is
rendered once and sampled in one request.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from engine.backends.values import Completion
from engine.rendering import Message, Renderer, user
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.grading.grade import Grade


class ProblemEnv(ABC):
    """One attempt at a problem. A subclass states `question` and `grade`; the rest has defaults.

    The reward is the grade, less `format_penalty` where the answer did not end as the renderer expects or is not `well_formed`.
    Metrics of the step: `correct` (the grade), `format` (1 or 0), and `grading_failed` where `grade` gives a `Grade`. Logs: `question`, `answer`, `reference` where there is one.
    """

    format_penalty: float = 0.1
    """Taken from the reward of an answer in the wrong form; 0: the form does not matter."""
    max_tokens: int | None = None
    """Most tokens of the answer; None: the rollout's own limit."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._observation: Observation | None = None

    @abstractmethod
    def question(self) -> str:
        """What is asked, as text."""

    @abstractmethod
    def grade(self, answer: str) -> float | Grade | Awaitable[float | Grade]:
        """How good the answer's text is, usually 0 to 1: a number, or a `Grade`, whose reason goes into the logs. A grader that is slow or runs foreign code
        must not run on the event loop: make the method async and send the work to a pool of processes (`envs.grading`)."""

    def reference(self) -> str | None:
        """The right answer, for people who read logs; None where there is none."""
        return None

    def well_formed(self, answer: str) -> bool:  # noqa: ARG002  (what follows is a default)
        """Whether the answer has the form that was asked for, right or wrong."""
        return True

    def messages(self) -> Sequence[Message]:
        """The conversation up to the answer. Override it for a system message or worked examples before the question."""
        return [user(self.question())]

    def teacher_messages(self) -> Sequence[Message] | None:
        """What a teacher reads in the place of `messages` when it scores the answer, say with the solution before the question; None: the same."""
        return None

    def observation(self) -> Observation:
        """The rendered prompt, made once."""
        if self._observation is None:
            prompt = self.renderer.generation_prompt(self.messages())
            privileged = self.teacher_messages()
            teacher_prompt = None if privileged is None else self.renderer.generation_prompt(privileged)
            self._observation = Observation(prompt, self.renderer.stop_sequences(), self.max_tokens, teacher_prompt)
        return self._observation

    def share_prompt(self, other: ProblemEnv) -> None:
        """Takes the prompt of another attempt at the same problem."""
        self._observation = other.observation()

    async def reset(self) -> Observation:
        """The problem."""
        return self.observation()

    async def step(self, completion: Completion) -> Step:
        """Grades the answer; the episode is over. Raises ValueError for a grade that is no finite number."""
        parsed = self.renderer.parse(completion.tokens)
        answer = parsed.message.text
        given = self.grade(answer)
        graded = await given if inspect.isawaitable(given) else given
        grade = float(graded.score if isinstance(graded, Grade) else graded)
        if not math.isfinite(grade):
            raise ValueError(
                f"{type(self).__name__}.grade gave {grade} for the answer {answer!r}; a grade is a finite number"
            )
        formed = parsed.ok and self.well_formed(answer)
        logs: dict[str, Any] = {"question": self.question(), "answer": answer}
        reference = self.reference()
        if reference is not None:
            logs["reference"] = reference
        metrics = {"correct": grade, "format": float(formed)}
        if isinstance(graded, Grade):
            metrics.update(graded.metrics)
            logs["grade"] = graded.reason
        return Step(reward=grade if formed else grade - self.format_penalty, metrics=metrics, logs=logs)


class ProblemGroup(GroupBuilder):
    """Several attempts at one problem, asked for in one sampling request."""

    single_turn = True

    def __init__(self, make_env: Callable[[], ProblemEnv], size: int, tags: Sequence[str] = ()) -> None:
        """`make_env()` gives another attempt at the same problem: same question, same prompt. `size` attempts make the group."""
        if size < 1:
            raise ValueError(f"a group has at least one member, got size {size}")
        self._make_env = make_env
        self._size = size
        self.tags = tuple(tags)

    async def make_envs(self) -> Sequence[Env]:
        """The attempts; the prompt is rendered once."""
        first = self._make_env()
        envs = [first]
        for _ in range(self._size - 1):
            env = self._make_env()
            env.share_prompt(first)
            envs.append(env)
        return envs
