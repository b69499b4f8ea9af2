"""Streamed answers: events go out as tokens come in.

The policy tells of tokens in callbacks; a channel carries what they add to the client, and the end of the client ends the sampling.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.backends.values import SampleRequest
from engine.serving import answers
from engine.serving.errors import ApiError
from engine.serving.requests import Chat, Text
from engine.serving.served import Work

SendEvent = Callable[[dict[str, Any]], None]
"""Queues an event; it never waits, because tokens do not."""


class EventStream(Response):
    """A response of server-sent events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        admitted: Callable[[], AbstractAsyncContextManager[None]],
        produce: Callable[[SendEvent], Awaitable[None]],
    ) -> None:
        super().__init__()
        del self.headers["content-length"]  # of the empty body that this response does not have
        self.headers["cache-control"] = "no-cache"
        self._admitted = admitted
        self._produce = produce
        self._began = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's)
        """Sends events until the answer is complete or the client is gone. An error before the first event is an error response, later one an event."""
        outgoing, incoming = anyio.create_memory_object_stream[dict[str, Any]](float("inf"))
        failure: list[ApiError] = []

        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            async def produce() -> None:
                with outgoing:
                    try:
                        async with self._admitted():
                            await self._produce(outgoing.send_nowait)
                    except ApiError as error:
                        failure.append(error)

            tasks.start_soon(watch)
            tasks.start_soon(produce)
            with incoming:
                async for body in incoming:
                    await self._begin(send)
                    await send({"type": "http.response.body", "body": answers.event(body), "more_body": True})
            await self._end(send, failure[0] if failure else None)
            tasks.cancel_scope.cancel()

    async def _begin(self, send: Send, status: int = 200) -> None:
        if not self._began:
            self._began = True
            await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})

    async def _end(self, send: Send, failure: ApiError | None) -> None:
        if failure is not None and not self._began:
            self.headers["content-type"] = "application/json"
            if failure.retry_after is not None:
                self.headers["retry-after"] = str(failure.retry_after)
            await self._begin(send, failure.status)
            await send({"type": "http.response.body", "body": answers.json_bytes(failure.body)})
            return
        await self._begin(send)
        last = answers.DONE if failure is None else answers.event(failure.body)
        await send({"type": "http.response.body", "body": last})


async def chat_events(chat: Chat, request: SampleRequest, work: Work, start: dict[str, Any], send: SendEvent) -> None:
    """The events of a chat answer, choices interleaved as their tokens come."""
    start = {**start, "object": "chat.completion.chunk"}
    streams = [answers.ChatStream(n, chat, work.served.renderer) for n in range(chat.asked.choices)]

    def say(choice: dict[str, Any]) -> None:
        send({**start, "choices": [choice]})

    def on_token(index: int, token: int, logprob: float) -> None:
        for choice in streams[index].feed(token, logprob):
            say(choice)

    for stream in streams:
        say(stream.begin())
    completions = await work.sample(request, on_token)
    for stream, completion in zip(streams, completions, strict=True):
        for choice in stream.finish(completion):
            say(choice)
    if chat.asked.usage_at_end:
        send({**start, "choices": [], "usage": answers.usage(request.prompt.length, completions)})


async def text_events(text: Text, request: SampleRequest, work: Work, start: dict[str, Any], send: SendEvent) -> None:
    """The events of a completions answer: text as soon as its characters are whole."""
    vocabulary, asked = work.served.renderer.vocabulary, text.asked
    streams = [answers.TextStream(vocabulary, () if text.keep_stop else asked.cut) for _ in range(asked.choices)]

    def choice(index: int, shown: str, **more: Any) -> None:
        send({**start, "choices": [{"index": index, "text": shown, "finish_reason": None, "logprobs": None, **more}]})

    def on_token(index: int, token: int, logprob: float) -> None:
        shown = streams[index].feed(token)
        more: dict[str, Any] = {}
        if asked.logprobs:
            more["logprobs"] = answers.text_logprobs([token], [logprob], vocabulary, names_are_ids=text.names_are_ids)
        if asked.token_ids:
            more["token_ids"] = [token]
        if shown or more:
            choice(index, shown, **more)

    completions = await work.sample(request, on_token)
    for index, (stream, completion) in enumerate(zip(streams, completions, strict=True)):
        choice(index, stream.finish(), finish_reason=completion.stop_reason)
    if asked.usage_at_end:
        send({**start, "choices": [], "usage": answers.usage(request.prompt.length, completions)})
