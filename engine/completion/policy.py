"""A completer over any policy of this engine: it renders, samples and parses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from engine.backends.errors import ContextExceeded
from engine.backends.ports import SamplingBackend, Snapshot, StreamingBackend, StreamingPolicy
from engine.backends.streaming import tell_all
from engine.backends.values import Completion, Logprobs, ModelInput, SampleRequest, SamplingParams
from engine.completion.ports import Reply, Samples
from engine.rendering.messages import Message
from engine.rendering.parsing import Delta, ParsedMessage
from engine.rendering.renderer import Renderer
from engine.rendering.tools import ToolSpec


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


class PolicyCompleter:
    """Renders the messages, samples one completion, parses it."""

    def __init__(self, policy: Samples, renderer: Renderer, *, max_context: int | None = None) -> None:
        """`max_context`: longest sequence the model takes: an answer ends there, and a conversation that leaves no room for one is refused with
        ContextExceeded. None: whatever the policy does with it."""
        self._policy = policy
        self._renderer = renderer
        self._max_context = max_context

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
        room = params.max_tokens if self._max_context is None else self._max_context - prompt.length
        if room < 1:
            raise ContextExceeded(
                f"the conversation takes {prompt.length} tokens, which leaves no room for an answer in the model's context of {self._max_context}"
            )
        return SampleRequest(prompt, attrs.evolve(params, max_tokens=min(params.max_tokens, room), stop=stop), seed)


def _after_tool(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[-1].role == "tool"


def _reply(parsed: ParsedMessage, request: SampleRequest, completion: Completion) -> Reply:
    return Reply(parsed.message, completion.stop_reason, request.prompt.length, len(completion.tokens), parsed.ok)
