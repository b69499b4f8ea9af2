"""The endpoint: OpenAI's chat and completions API over policies of this engine, as an ASGI application.

    GET  /health                 no key needed
    GET  /v1/models
    POST /v1/chat/completions    tools, reasoning, logprobs, token ids, streaming
    POST /v1/completions         text or token ids in; echo, logprobs, token ids, streaming

A client that goes away takes its request with it: what the policy was sampling for it is cancelled.
"""

from __future__ import annotations

import hmac
import math
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import anyio
import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.backends.values import Completion, SampleRequest
from engine.runtime.ungrouped import ungrouped
from engine.serving import answers, requests
from engine.serving.errors import ApiError, wrong
from engine.serving.limits import Limits
from engine.serving.served import Observer, ServedPolicy, Work
from engine.serving.streams import EventStream, chat_events, text_events

Handler = Callable[[dict[str, Any], Work], Awaitable[Response]]


class Endpoint:
    """The application's state; `application()` is what a server runs."""

    def __init__(
        self,
        policies: Mapping[str, ServedPolicy],
        *,
        api_key: str | None,
        limits: Limits | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`policies` by the name that clients ask for. `api_key` None: everybody who reaches the endpoint may use it."""
        self.policies = dict(policies)
        self.limits = limits or Limits()
        self.observer = observer
        self._key = api_key
        self._slots = anyio.Semaphore(self.limits.concurrency)
        self._present = 0
        self._under_way: set[anyio.CancelScope] = set()
        self._stopping = False

    @property
    def has_key(self) -> bool:
        """Whether clients must show a key."""
        return self._key is not None

    @property
    def present(self) -> int:
        """Requests worked on or waiting now."""
        return self._present

    def stop(self) -> None:
        """Ends what is under way, and refuses what still comes, with an error that says why."""
        self._stopping = True
        for scope in self._under_way:
            scope.cancel()

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._posted(self._chat), methods=["POST"]),
                Route("/v1/completions", self._posted(self._text), methods=["POST"]),
            ],
            exception_handlers={ApiError: _as_response, 404: _not_found, 405: _not_allowed},
        )

    # ---- routes

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "requests": self._present})

    async def _models(self, request: Request) -> Response:
        self._authorise(request)
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "callsheet", "max_model_len": served.max_context}
            for name, served in self.policies.items()
        ]
        return JSONResponse({"object": "list", "data": listed})

    def _posted(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            self._authorise(request)
            body = requests.body_of(await self._read(request))
            name = body.get("model")
            served = self.policies.get(name) if isinstance(name, str) else None
            if served is None:
                there_are = ", ".join(self.policies)
                missing = "the request names no model" if name is None else f"there is no model {name!r}"
                raise ApiError(404, f"{missing}; there is {there_are}", param="model", code="model_not_found")
            work = Work(str(name), served, self.limits, self.observer)
            if body.get("stream"):
                return await handler(body, work)  # the stream itself is admitted when it begins
            found: list[Response] = []

            async def finish() -> None:
                async with self.admitted():
                    found.append(await handler(body, work))

            await _unless_disconnected(request, finish)
            return found[0] if found else Response(status_code=499)

        return answer

    async def _chat(self, body: dict[str, Any], work: Work) -> Response:
        chat = requests.chat(body, work.served, work.limits)
        request = requests.sample_request(requests.rendered(chat, work.served), chat.asked, work.served)
        start = answers.head("chat.completion", answers.new_id("chatcmpl"), work.name)
        if chat.asked.stream:
            return EventStream(self.admitted, lambda send: chat_events(chat, request, work, start, send))
        completions = await work.sample(request)
        return JSONResponse({**start, **answers.chat_answer(chat, request, completions, work.served)})

    async def _text(self, body: dict[str, Any], work: Work) -> Response:
        text = requests.text(body, work.served, work.limits)
        asked = [requests.sample_request(prompt, text.asked, work.served) for prompt in text.prompts]
        start = answers.head("text_completion", answers.new_id("cmpl"), work.name)
        if text.asked.stream:
            if len(asked) != 1:
                raise wrong("prompt", "one at a time in a stream")
            return EventStream(self.admitted, lambda send: text_events(text, asked[0], work, start, send))
        choices: list[dict[str, Any]] = []
        written: list[Completion] = []
        for request in asked:
            echoed = await _prompt_logprobs(work.served, request) if text.echo and text.asked.logprobs else None
            completions = await work.sample(request)
            written += completions
            choices += [
                answers.text_choice(len(choices) + n, text, request, completion, echoed, work.served)
                for n, completion in enumerate(completions)
            ]
        counted = answers.usage(sum(request.prompt.length for request in asked), written)
        return JSONResponse({**start, "choices": choices, "usage": counted})

    # ---- what every request passes

    def _authorise(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
            raise ApiError(401, "a valid key is needed: Authorization: Bearer <key>", code="invalid_api_key")

    async def _read(self, request: Request) -> bytes:
        raw = bytearray()
        try:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    raw += chunk
                    if len(raw) > self.limits.max_body:
                        raise ApiError(413, f"the request is larger than {self.limits.max_body} bytes")
        except ClientDisconnect:
            raise ApiError(400, "the client went away before its request was whole") from None
        return bytes(raw)

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A turn among the requests, within the limits; what goes wrong in it is an ApiError."""
        if self._present >= self.limits.concurrency + self.limits.waiting:
            raise ApiError(429, "too many requests at once; try again in a moment", retry_after=1)
        self._present += 1
        scope = anyio.CancelScope()
        if self._stopping:
            scope.cancel()
        self._under_way.add(scope)
        try:
            with scope, _told(self.limits.seconds):
                async with self._slots:
                    yield
        finally:
            self._under_way.remove(scope)
            self._present -= 1
        if scope.cancelled_caught:
            raise ApiError(503, "the server is stopping", retry_after=1)


@contextmanager
def _told(seconds: float) -> Iterator[None]:
    """What goes wrong in a request, as its client is told of it."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise ApiError(504, f"the answer took longer than {seconds:g} s") from None
    except RequestRejected as error:
        raise ApiError(400, str(error)) from error
    except TransientError as error:
        raise ApiError(503, str(error), retry_after=1) from error
    except BackendError as error:
        raise ApiError(500, str(error)) from error
    except ApiError:
        raise
    except Exception as error:
        # As text: a console's traceback would show the values of variables, and with them what clients say.
        said = "".join(traceback.format_exception(error))
        structlog.get_logger("callsheet").error("a request failed", traceback=said)
        raise ApiError(500, f"the server failed: {type(error).__name__}") from error


async def _prompt_logprobs(served: ServedPolicy, request: SampleRequest) -> list[float | None]:
    score = getattr(served.policy, "compute_logprobs", None)
    if score is None:
        raise wrong("echo", "this policy cannot give the logprobs of a prompt")
    logprobs_T = await score(request.prompt)
    return [None if math.isnan(value) else value for value in logprobs_T.tolist()]


async def _unless_disconnected(request: Request, work: Callable[[], Awaitable[None]]) -> None:
    """Does the work, and stops when the client goes away."""
    with ungrouped():
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await work()
            tasks.cancel_scope.cancel()


async def _as_response(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body, error.status, headers)


async def _not_found(request: Request, _: Exception) -> Response:
    return JSONResponse(ApiError(404, f"there is nothing at {request.url.path}").body, 404)


async def _not_allowed(request: Request, _: Exception) -> Response:
    return JSONResponse(ApiError(405, f"{request.method} is not served at {request.url.path}").body, 405)
