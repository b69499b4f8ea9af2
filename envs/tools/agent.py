"""An episode with tools: the model calls, the tools answer, until the model says what it has found.

    question ──▶ answer with calls ──▶ results ──▶ answer with calls ──▶ ... ──▶ answer without calls: graded

The conversation only grows, so that all of an episode's turns become one training sequence (where the model's family keeps its history; within one question all
of them do). What the tools said is observation: in the context, and never trained on.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from engine.backends.values import Completion
from engine.rendering import Dialogue, Message, Renderer
from envs.answers import Worth
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.together import or_error, together
from envs.tools.tool import Tool, tools_of
from envs.tools.toolbox import CallOutcome, Toolbox, calls_in

Grade = Callable[[str], float | Worth | Awaitable[float | Worth]]
"""How good a final answer is, usually 0 to 1. As for `ProblemEnv.grade`: what is slow or runs foreign code is async, and works in a pool of processes. A `Worth`
adds metrics and logs."""

_positive: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class ToolLimits:
    """What an episode may take. None: no limit beside the rollout's own."""

    max_turns: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Answers of the model. Calls in the last one are not made: nobody would read the results."""
    max_calls: int | None = attrs.field(default=None, validator=_positive)
    """Calls of an episode; further ones are refused, and the model is told."""
    calls_per_answer: int | None = attrs.field(default=8, validator=_positive)
    """Calls of one answer; the others are refused."""
    max_tokens: int | None = attrs.field(default=None, validator=_positive)
    """Tokens of one answer; None: the rollout's own limit."""


@attrs.frozen(kw_only=True)
class ToolRewards:
    """What is taken from the grade."""

    format_penalty: float = 0.1
    """Once, where a call could not be read or the final answer did not end as it should."""
    error_penalty: float = 0.0
    """For each call that ended in an error."""
    call_cost: float = 0.0
    """For each call."""


class ToolSession:
    """Tools with a state of their own, made for one episode. Mark the methods with `@tool`.

    `setup` runs before the episode (within the rollout's `provision` budget), `teardown` after it, however it ended and also when `setup` failed half-way
    (within `teardown`). The two run in different cancel scopes, so neither may leave a task group or a cancel scope open.
    """

    parallel = False
    """Whether the calls of one answer run at once. Not where they share state: their order would be left to chance."""

    def tools(self) -> Sequence[Callable[..., Any] | Tool]:
        """The tools, before `setup`."""
        return tools_of(self)

    async def setup(self) -> None:
        """Takes what the episode needs."""

    async def teardown(self) -> None:
        """Frees it."""


class ToolEnv:
    """One attempt at a task with tools.

    Reward: the grade of the final answer less `ToolRewards`; nothing is graded where there is no final answer, and the grade is 0. Metrics, at the end: `correct`
    (the grade), `answered` (there was a final answer), `format`, `tool_calls`, `tool_errors`, and of those `tool_unparsed`, `tool_timeouts`; what tools
    report of themselves.
    """

    def __init__(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        toolbox: Toolbox,
        grade: Grade,
        *,
        limits: ToolLimits | None = None,
        rewards: ToolRewards | None = None,
        reference: str | None = None,
        unanswered: Worth | None = None,
        session: ToolSession | None = None,
    ) -> None:
        """`messages`: the conversation up to the first answer. `reference`: the right answer, for people who read logs. `unanswered`: what an
        episode without a final answer is worth; give it the grade's metrics, or their means leave such episodes out. `session`: what the group sets up
        and tears down for this episode."""
        self.renderer = renderer
        self.session = session
        self._messages = tuple(messages)
        self._toolbox = toolbox
        self._grade = grade
        self._limits = limits or ToolLimits()
        self._rewards = rewards or ToolRewards()
        self._reference = reference
        self._unanswered = unanswered or Worth()
        self._first: Observation | None = None
        self._turns = 0
        self._formed = True
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()

    def first(self) -> Observation:
        """The first observation, rendered once."""
        if self._first is None:
            prompt = self.renderer.generation_prompt(self._messages, tools=self._toolbox.specs)
            self._first = Observation(prompt, self.renderer.stop_sequences(), self._limits.max_tokens)
        return self._first

    def share_prompt(self, other: ToolEnv) -> None:
        """Takes the first prompt of another attempt at the same task, with the same tools."""
        self._first = other.first()

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything said so far."""
        return self._dialogue.messages

    async def reset(self) -> Observation:
        """The task."""
        first = self.first()
        self._dialogue = Dialogue(self.renderer, self._messages, tools=self._toolbox.specs, prompt=first.prompt)
        return first

    async def step(self, completion: Completion) -> Step:
        """Makes the calls of the answer, or grades it where it has none. Raises ToolUnavailable where a tool does, ValueError for a grade that is not finite."""
        parsed = self._dialogue.answer(completion.tokens)
        self._turns += 1
        calls = calls_in(parsed.message)
        if not calls:
            self._formed &= parsed.ok
            return await self._end(parsed.message.text, [])
        if self._turns >= self._limits.max_turns:
            self._counts["calls"] += len(calls)
            return await self._end(None, [])
        outcomes = await self._toolbox.run(calls, allowed=self._allowed())
        self._count(outcomes)
        final = next((outcome for outcome in outcomes if outcome.final), None)
        if final is not None:
            return await self._end(final.text, outcomes)
        prompt = self._dialogue.extend(*[outcome.message() for outcome in outcomes])
        observation = Observation(prompt, self.renderer.stop_sequences(), self._limits.max_tokens)
        return Step(observation=observation, logs=self._logs(parsed.message.text, outcomes))

    def _allowed(self) -> int | None:
        limits = self._limits
        left = None if limits.max_calls is None else limits.max_calls - self._counts["calls"]
        given = [limit for limit in (left, limits.calls_per_answer) if limit is not None]
        return min(given) if given else None

    def _count(self, outcomes: Sequence[CallOutcome]) -> None:
        for outcome in outcomes:
            self._counts["calls"] += 1
            self._counts["errors"] += outcome.error is not None
            if outcome.error is not None:
                self._counts[outcome.error] += 1
            self._formed &= outcome.error != "unparsed"
            self._reported.update(outcome.metrics)

    async def _end(self, answer: str | None, outcomes: Sequence[CallOutcome]) -> Step:
        worth = self._unanswered if answer is None else await self._graded(answer)
        counts, rewards = self._counts, self._rewards
        reward = worth.reward - rewards.error_penalty * counts["errors"] - rewards.call_cost * counts["calls"]
        return Step(
            reward=reward if self._formed else reward - rewards.format_penalty,
            metrics={
                "correct": worth.reward,
                "answered": float(answer is not None),
                "format": float(self._formed),
                "tool_calls": float(counts["calls"]),
                "tool_errors": float(counts["errors"]),
                "tool_unparsed": float(counts["unparsed"]),
                "tool_timeouts": float(counts["timeout"]),
                **self._reported,
                **worth.metrics,
            },
            logs={**self._logs(answer, outcomes), **worth.logs},
        )

    async def _graded(self, answer: str) -> Worth:
        given = self._grade(answer)
        grade = await given if inspect.isawaitable(given) else given
        worth = grade if isinstance(grade, Worth) else Worth(float(grade))
        if not math.isfinite(worth.reward):
            raise ValueError(f"the grader gave {worth.reward} for the answer {answer!r}; a grade is a finite number")
        return worth

    def _logs(self, answer: str | None, outcomes: Sequence[CallOutcome]) -> dict[str, Any]:
        asked = next((message.text for message in reversed(self._messages) if message.role == "user"), "")
        logs: dict[str, Any] = {"question": asked, "answer": answer or ""}
        if outcomes:
            logs["calls"] = [outcome.log() for outcome in outcomes]
        if self._reference is not None:
            logs["reference"] = self._reference
        return logs


class ToolGroup(GroupBuilder):
    """Several attempts at one task, each with a session of its own where it has one."""

    def __init__(self, make_env: Callable[[], ToolEnv], size: int, tags: Sequence[str] = ()) -> None:
        """`make_env()` gives another attempt at the same task. `size` attempts make the group."""
        if size < 1:
            raise ValueError(f"a group has at least one member, got size {size}")
        self._make_env = make_env
        self._size = size
        self._sessions: list[ToolSession] = []
        self.tags = tuple(tags)

    async def make_envs(self) -> Sequence[Env]:
        """The attempts, their sessions set up at the same time; the prompt is rendered once."""
        first = self._make_env()
        envs = [first, *(self._make_env() for _ in range(self._size - 1))]
        for env in envs[1:]:
            env.share_prompt(first)
        self._sessions += [env.session for env in envs if env.session is not None]
        await together([env.session.setup for env in envs if env.session is not None])
        return envs

    async def cleanup(self) -> None:
        """Tears every session down, also where another one's teardown fails."""
        sessions, self._sessions = self._sessions, []
        failed = [each for each in await together([or_error(each.teardown) for each in sessions]) if each is not None]
        if failed:
            raise ExceptionGroup("sessions that could not be torn down", failed)
