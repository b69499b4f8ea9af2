"""Completers: messages in, a message out. What judges, answerers of questions, teachers that write and chat servers are to those who ask them.

    messages ──Completer──> Reply

A `PolicyCompleter` renders, samples and parses on any policy of this engine. A `ScriptedCompleter` answers from a function: it is what tests and
offline runs ask. Others (a server over HTTP) live with their backends.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, runtime_checkable

import attrs

from engine.backends.errors import BackendError
from engine.backends.ports import SamplingBackend, Snapshot, StreamingBackend, StreamingPolicy
from engine.backends.values import Completion, Logprobs, ModelInput, SampleRequest, SamplingParams, StopReason
from engine.rendering.messages import Message, assistant
from engine.rendering.parsing import Delta, ParsedMessage
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


@runtime_checkable
class StreamingCompleter(Protocol):
    """A completer that can tell of its answer while it is written; optional."""

    async def stream(
        self,
        messages: Sequence[Message],
        on_delta: Callable[[Delta], None],
        *,
        params: SamplingParams,
        seed: int,
        tools: Sequence[ToolSpec] = (),
    ) -> Reply:
        """Like `complete`; `on_delta` is given stretches of reasoning and text as they come."""
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

    async def sample_streaming(
        self, request: SampleRequest, on_token: Callable[[int, int, float], None]
    ) -> Sequence[Completion]:
        """See `StreamingPolicy.sample_streaming`. Where the backend cannot stream, all tokens come at the end."""
        if isinstance(self._backend, StreamingBackend):
            return await self._backend.sample_streaming(self._snapshot, request, on_token)
        completions = await self._backend.sample(self._snapshot, request)
        tell_all(completions, on_token)
        return completions

    async def compute_logprobs(self, sequence: ModelInput) -> Logprobs:
        """See `SamplingBackend.compute_logprobs`."""
        return await self._backend.compute_logprobs(self._snapshot, sequence)


def tell_all(
    completions: Sequence[Completion], on_token: Callable[[int, int, float], None], told: Sequence[int] = ()
) -> None:
    """Tells of the tokens of finished completions; of each, from the one behind the first `told[index]`."""
    for index, completion in enumerate(completions):
        first = told[index] if told else 0
        pairs = zip(completion.tokens[first:].tolist(), completion.logprobs[first:].tolist(), strict=True)
        for token, logprob in pairs:
            on_token(index, token, logprob)


class PolicyCompleter:
    """Renders the messages, samples one completion, parses it."""

    def __init__(self, policy: Samples, renderer: Renderer) -> None:
        self._policy = policy
        self._renderer = renderer

    async def complete(
        self, messages: Sequence[Message], *, params: SamplingParams, seed: int, tools: Sequence[ToolSpec] = ()
    ) -> Reply:
        """See `Completer.complete`. The renderer's stop sequences end an answer, and those of `params` too."""
        request = self._request(messages, params, seed, tools)
        (completion,) = await self._policy.sample(request)
        parsed = self._renderer.parse(completion.tokens, tools=tools, after_tool=_after_tool(messages))
        return _reply(parsed, request, completion)

    async def stream(
        self,
        messages: Sequence[Message],
        on_delta: Callable[[Delta], None],
        *,
        params: SamplingParams,
        seed: int,
        tools: Sequence[ToolSpec] = (),
    ) -> Reply:
        """See `StreamingCompleter.stream`. Where the policy cannot stream, all of the answer comes at its end."""
        parser = self._renderer.stream_parser(tools=tools, after_tool=_after_tool(messages))
        said = ""

        def on_token(_: int, token: int, __: float) -> None:
            nonlocal said
            for event in parser.feed([token]):
                if isinstance(event, Delta):
                    said += event.text if event.kind == "text" else ""
                    on_delta(event)

        request = self._request(messages, params, seed, tools)
        if isinstance(self._policy, StreamingPolicy):
            (completion,) = await self._policy.sample_streaming(request, on_token)
        else:
            (completion,) = completions = await self._policy.sample(request)
            tell_all(completions, on_token)
        reply = _reply(parser.finish(), request, completion)
        if reply.text.startswith(said) and len(reply.text) > len(said):  # a broken character at the end
            on_delta(Delta("text", reply.text[len(said) :]))
        return reply

    def _request(
        self, messages: Sequence[Message], params: SamplingParams, seed: int, tools: Sequence[ToolSpec]
    ) -> SampleRequest:
        prompt = self._renderer.generation_prompt(messages, tools=tools)
        stop = (*self._renderer.stop_sequences(), *params.stop)
        return SampleRequest(prompt, attrs.evolve(params, stop=stop), seed)


def _after_tool(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[-1].role == "tool"


def _reply(parsed: ParsedMessage, request: SampleRequest, completion: Completion) -> Reply:
    return Reply(parsed.message, completion.stop_reason, request.prompt.length, len(completion.tokens), parsed.ok)


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
