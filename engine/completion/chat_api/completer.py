"""A completer over the chat API: judges, teachers that write, opponents, on vLLM, SGLang, llama.cpp or a hosted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from engine.backends.errors import RequestRejected, TransientError
from engine.backends.openai_compatible.connection import Connection
from engine.backends.openai_compatible.fields import stop_reason, stops
from engine.backends.values import SamplingParams
from engine.completion.chat_api.messages import Gathered, has_local_images, read, written
from engine.completion.ports import Reply
from engine.rendering.messages import Message, UnparsedToolCallPart
from engine.rendering.parsing import Delta
from engine.rendering.tools import ToolSpec
from engine.runtime.offload import offload

PATH = "chat/completions"


@attrs.frozen
class Dialect:
    """Where servers of this kind differ."""

    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit; OpenAI's reasoning models want max_completion_tokens."""
    seed: bool = True
    """Whether a seed is sent; some servers refuse one."""
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """Fields added to every request, such as `chat_template_kwargs`."""


class ChatCompleter:
    """Asks a server's chat API. Its usage is counted in `connection.usage`."""

    def __init__(self, connection: Connection, model: str, dialect: Dialect | None = None) -> None:
        self.connection = connection
        self.model = model
        self._dialect = dialect or Dialect()

    async def complete(
        self, messages: Sequence[Message], *, params: SamplingParams, seed: int, tools: Sequence[ToolSpec] = ()
    ) -> Reply:
        """See `Completer.complete`. Raises TransientError when the attempts are used up, RequestRejected for what the server will not take."""
        answer = await self.connection.post(PATH, await self._body(messages, params, seed, tools))
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0].get("message"), Mapping):
            raise TransientError(
                f"{self.connection.settings.base_url}: the answer holds no message: {str(answer)[:200]}"
            )
        return _reply(read(choices[0]["message"]), choices[0].get("finish_reason"), answer.get("usage"))

    async def stream(
        self,
        messages: Sequence[Message],
        on_delta: Callable[[Delta], None],
        *,
        params: SamplingParams,
        seed: int,
        tools: Sequence[ToolSpec] = (),
    ) -> Reply:
        """Like `complete`, but `on_delta` is given stretches of reasoning and text as they come."""
        body = await self._body(messages, params, seed, tools)
        gathered, usage = Gathered(), None
        async with self.connection.stream(PATH, {**body, "stream_options": {"include_usage": True}}) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    for delta in gathered.add(choice):
                        on_delta(delta)
        if gathered.finish is None:
            raise TransientError(f"{self.connection.settings.base_url}: the stream ended before the answer did")
        return _reply(gathered.message(), gathered.finish, usage)

    async def _body(
        self, messages: Sequence[Message], params: SamplingParams, seed: int, tools: Sequence[ToolSpec]
    ) -> dict[str, Any]:
        if not messages:
            raise RequestRejected("messages: there are none; a server answers at least one")
        if has_local_images(messages):
            dictionaries = await offload(_written, messages)
        else:
            dictionaries = _written(messages)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": dictionaries,
            self._dialect.max_tokens: params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        body |= stops(params)
        if self._dialect.seed:
            body["seed"] = seed % 2**31
        if params.top_k != -1:
            body["top_k"] = params.top_k
        if tools:
            body["tools"] = [tool.to_openai() for tool in tools]
        return {**body, **self._dialect.extra}


def _written(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [written(message) for message in messages]


def _reply(message: Message, finish: object, usage: Any) -> Reply:
    counted = usage if isinstance(usage, Mapping) else {}
    formed = finish in {"stop", "tool_calls"} and not any(
        isinstance(part, UnparsedToolCallPart) for part in message.content
    )
    return Reply(message, stop_reason(finish), counted.get("prompt_tokens"), counted.get("completion_tokens"), formed)
