"""Completers: messages in, a message out. What judges, answerers of questions, teachers that write and chat servers are to those who ask them.

    messages ──Completer──> Reply

A `PolicyCompleter` renders, samples and parses on any policy of this engine. A `ScriptedCompleter` answers from a function: it is what tests and
offline runs ask. Others (a server over HTTP) live with their backends.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs

from engine.backends.errors import BackendError
from engine.backends.ports import SamplingBackend, Snapshot
from engine.backends.values import Completion, SampleRequest, SamplingParams, StopReason
from engine.rendering.messages import Message, assistant
from engine.rendering.renderer import Renderer
from engine.rendering.tools import ToolSpec


@attrs.frozen
class Reply:
    """A completer's answer."""

    message: Message
    stop_reason: StopReason = "stop"
    """length: it was cut off at `max_tokens`."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """What the answer cost, where the completer knows."""
    well_formed: bool = True
    """Whether the answer ended as its format wants it to, every tool call readable."""

    @property
    def text(self) -> str:
        """The answer's text, reasoning and calls left out."""
        return self.message.text


class Completer(Protocol):
    """Whoever answers messages."""

    async def complete(
        self, messages: Sequence[Message], *, params: SamplingParams, seed: int, tools: Sequence[ToolSpec] = ()
    ) -> Reply:
        """The next message of the conversation.

        The same arguments may give the same answer (where the model's sampling is seeded) and need not. Raises BackendError where there is none, RenderError
        for a conversation that cannot be written.
        """
        ...


class Samples(Protocol):
    """What a `PolicyCompleter` needs of a policy; `envs.contracts.Policy` is one."""

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions."""
        ...


class SnapshotPolicy:
    """A policy that asks one snapshot of a backend. The snapshot stays its maker's to release."""

    def __init__(self, backend: SamplingBackend, snapshot: Snapshot) -> None:
        self._backend = backend
        self._snapshot = snapshot

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        """See `SamplingBackend.sample`."""
        return await self._backend.sample(self._snapshot, request)


class PolicyCompleter:
    """Renders the messages, samples one completion, parses it."""

    def __init__(self, policy: Samples, renderer: Renderer) -> None:
        self._policy = policy
        self._renderer = renderer

    async def complete(
        self, messages: Sequence[Message], *, params: SamplingParams, seed: int, tools: Sequence[ToolSpec] = ()
    ) -> Reply:
        """See `Completer.complete`. The renderer's stop sequences end an answer, and those of `params` too."""
        prompt = self._renderer.generation_prompt(messages, tools=tools)
        stop = (*self._renderer.stop_sequences(), *params.stop)
        (completion,) = await self._policy.sample(SampleRequest(prompt, attrs.evolve(params, stop=stop), seed))
        after_tool = bool(messages) and messages[-1].role == "tool"
        parsed = self._renderer.parse(completion.tokens, tools=tools, after_tool=after_tool)
        return Reply(parsed.message, completion.stop_reason, prompt.length, len(completion.tokens), parsed.ok)


Answer = str | Message | Reply
Script = Callable[[Sequence[Message]], Answer | Awaitable[Answer]] | Sequence[Answer]


class ScriptedCompleter:
    """Answers from a function of the messages, or from a list in order. Remembers what it was asked (`asked`)."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.asked: list[tuple[Message, ...]] = []

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        params: SamplingParams,  # noqa: ARG002  (the port's)
        seed: int,  # noqa: ARG002
        tools: Sequence[ToolSpec] = (),  # noqa: ARG002
    ) -> Reply:
        """See `Completer.complete`. Raises BackendError when a list of answers is used up."""
        self.asked.append(tuple(messages))
        if callable(self._script):
            given = self._script(messages)
            answer = await given if inspect.isawaitable(given) else given
        elif len(self.asked) <= len(self._script):
            answer = self._script[len(self.asked) - 1]
        else:
            raise BackendError(f"the script has {len(self._script)} answers and was asked for one more")
        if isinstance(answer, Reply):
            return answer
        return Reply(answer if isinstance(answer, Message) else assistant(answer))
