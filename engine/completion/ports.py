"""The port of everything that answers messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import attrs

from engine.backends.values import Completion, SampleRequest, SamplingParams, StopReason
from engine.rendering.messages import Message
from engine.rendering.parsing import Delta
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
