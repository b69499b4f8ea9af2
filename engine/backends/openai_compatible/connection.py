"""HTTP to a server of the OpenAI kind: one pool, bounded concurrency, a deadline for every request, retries, usage counts.

    post    one request, one JSON answer
    stream  one request, an answer in server-sent events

What is retried is what may pass: no connection, a dropped one, 408, 409, 425, 429, 5xx, an answer that is not JSON, a deadline. The pause doubles, with
jitter, unless the server says how long (`Retry-After`). When the attempts are used up that is a TransientError; what trying again cannot help is
RequestRejected; a refused key is a BackendError. No message holds the key.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import httpx

from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.runtime.ungrouped import ungrouped

DEFAULT_URL = "https://api.openai.com/v1"
RETRIED = frozenset({408, 409, 425, 429})
"""Beside all of 5xx."""
SAID = 300
"""Characters of a server's own words in a message."""


@attrs.frozen
class ServerSettings:
    """Where the server is, and how it is asked."""

    base_url: str
    """Up to the version: `http://127.0.0.1:8000/v1`."""
    api_key: str | None = attrs.field(default=None, repr=False)
    """Sent as a bearer token; None: none is sent."""
    concurrency: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    """Most requests under way at once; further ones wait their turn."""
    attempts: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    """How often a request is tried where the failure may pass."""
    backoff: float = attrs.field(default=0.5, validator=attrs.validators.ge(0))
    """Seconds before the second attempt; doubled for each further one, with up to half as much again at random."""
    backoff_limit: float = attrs.field(default=30.0, validator=attrs.validators.ge(0))
    """Longest pause between attempts, in seconds."""
    deadline: float = attrs.field(default=300.0, validator=attrs.validators.gt(0))
    """Most seconds of one attempt, from the moment it has a turn to its last byte."""


def server_settings(base_url: str | None = None, api_key: str | None = None, **others: Any) -> ServerSettings:
    """Settings whose address and key come from OPENAI_BASE_URL and OPENAI_API_KEY where none are given."""
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    return ServerSettings(url, api_key or os.environ.get("OPENAI_API_KEY") or None, **others)


@attrs.frozen
class Usage:
    """What was asked of a server so far."""

    requests: int = 0
    """Answered."""
    retries: int = 0
    failed: int = 0
    """Given up, or rejected."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As the server counts them; 0 where it does not say."""


class Connection:
    """One server. Made by `connect`."""

    def __init__(self, client: httpx.AsyncClient, settings: ServerSettings, jitter: random.Random) -> None:
        self.settings = settings
        self.usage = Usage()
        self._client = client
        self._jitter = jitter
        self._turns = anyio.CapacityLimiter(settings.concurrency)

    async def post(self, path: str, body: Mapping[str, Any], *, attempts: int | None = None) -> dict[str, Any]:
        """The answer to a request. `attempts`: None: the settings' own."""
        async with aclosing(self._attempts(path, attempts)) as tries:
            async for attempt in tries:
                with attempt:
                    async with self._turns:
                        with anyio.fail_after(self.settings.deadline):
                            response = await self._client.post(path, json=body)
                    answer = self._checked(path, response)
                    self._count(answer.get("usage"))
                    return answer
        raise AssertionError("the last attempt returns or raises")

    async def get(self, path: str) -> dict[str, Any]:
        """What lies at a path, such as `models`."""
        async with aclosing(self._attempts(path, None)) as tries:
            async for attempt in tries:
                with attempt:
                    with anyio.fail_after(self.settings.deadline):
                        response = await self._client.get(path)
                    return self._checked(path, response)
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The events of a streamed answer. Tried again only as long as none has come; the deadline is for the whole answer.

        A task of its own reads them: so a reader that leaves early cancels it in the middle of a read, and httpx's nested generators all end.
        """
        async with self._turns:
            with anyio.CancelScope() as limit, ungrouped():
                response = await self._open_stream(path, body, limit)
                self._count(None)
                try:
                    async with anyio.create_task_group() as tasks:
                        reading = _Reading()
                        tasks.start_soon(self._read, path, response, reading)
                        async with aclosing(reading.events()) as events:
                            yield events
                        tasks.cancel_scope.cancel()
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()
        if limit.cancelled_caught:
            raise TransientError(f"{self._where(path)}: no whole answer within {self.settings.deadline:g} s")

    async def _read(self, path: str, response: httpx.Response, reading: _Reading) -> None:
        """Reads a stream to its end. The first thing that goes wrong is kept for whoever takes the events."""
        with reading.incoming:
            try:
                async for line in response.aiter_lines():
                    name, _, data = line.partition(":")
                    if name == "data" and not reading.over:  # not a comment, an empty line, another field of the event
                        self._take(path, data.strip(), reading)
            except httpx.HTTPError as error:
                reading.fail(TransientError(f"{self._where(path)}: the stream broke off: {_said(error)}"))

    def _take(self, path: str, data: str, reading: _Reading) -> None:
        if data == "[DONE]":
            reading.over = True
            return
        event = _json_object(data)
        if event is None:
            reading.fail(TransientError(f"{self._where(path)}: an event is not JSON: {data[:SAID]!r}"))
        elif "error" in event:
            said = _complaint(event) or "the server failed in mid-stream"
            reading.fail(TransientError(f"{self._where(path)}: {said}"))
        else:
            self._count(event.get("usage"), request=False)
            reading.incoming.send_nowait(event)

    async def _open_stream(self, path: str, body: Mapping[str, Any], limit: anyio.CancelScope) -> httpx.Response:
        async with aclosing(self._attempts(path, None)) as tries:
            async for attempt in tries:
                with attempt:
                    limit.deadline = anyio.current_time() + self.settings.deadline
                    request = self._client.build_request("POST", path, json={**body, "stream": True})
                    response = await self._client.send(request, stream=True)
                    if response.status_code != httpx.codes.OK:
                        try:
                            await response.aread()
                        finally:
                            await response.aclose()
                        self._checked(path, response)
                    return response
        raise AssertionError("the last attempt returns or raises")

    async def _attempts(self, path: str, attempts: int | None) -> AsyncGenerator[_Attempt, None]:
        """Attempts, with pauses in between, until one neither raises nor is told to go on."""
        most = attempts or self.settings.attempts
        for number in range(1, most + 1):
            attempt = _Attempt(self._where(path), self.settings.deadline)
            yield attempt
            if attempt.failure is None:
                return
            if number == most:
                self.usage = attrs.evolve(self.usage, failed=self.usage.failed + 1)
                raise TransientError(f"{attempt.failure} ({number} attempts)") from attempt.failure
            self.usage = attrs.evolve(self.usage, retries=self.usage.retries + 1)
            await anyio.sleep(attempt.failure.pause if attempt.failure.pause is not None else self._pause(number))

    def _pause(self, attempt: int) -> float:
        pause = self.settings.backoff * 2.0 ** (attempt - 1) * (1 + self._jitter.random() / 2)
        return min(self.settings.backoff_limit, pause)

    def _checked(self, path: str, response: httpx.Response) -> dict[str, Any]:
        """The answer's JSON object. Raises what its status means."""
        status, answer = response.status_code, _json_object(response.text)
        said = _complaint(answer) if answer is not None else " ".join(response.text.split())[:SAID]
        where = self._where(path)
        if status in RETRIED or status >= 500:
            raise _MayPass(f"{where}: {status}: {said or response.reason_phrase}", _retry_after(response))
        if status in {401, 403}:
            self.usage = attrs.evolve(self.usage, failed=self.usage.failed + 1)
            raise BackendError(
                f"{where}: {status}: the server refused the key that it was given, or its absence ({said})"
            )
        if status >= 300:
            self.usage = attrs.evolve(self.usage, failed=self.usage.failed + 1)
            raise RequestRejected(f"{where}: {status}: {said or response.reason_phrase}")
        if answer is None:
            raise _MayPass(f"{where}: the answer is not a JSON object: {said!r}")
        return answer

    def _count(self, usage: Any, *, request: bool = True) -> None:
        given = usage if isinstance(usage, Mapping) else {}
        self.usage = attrs.evolve(
            self.usage,
            requests=self.usage.requests + request,
            prompt_tokens=self.usage.prompt_tokens + int(given.get("prompt_tokens") or 0),
            completion_tokens=self.usage.completion_tokens + int(given.get("completion_tokens") or 0),
        )

    def _where(self, path: str) -> str:
        return f"{self.settings.base_url.rstrip('/')}/{path}"


class _Reading:
    """A stream being read: events on their way, and what went wrong."""

    def __init__(self) -> None:
        # Without a bound: an answer's length is its bound, and a reader that waited between two reads could not be stopped cleanly.
        self.incoming, self._outgoing = anyio.create_memory_object_stream[dict[str, Any]](math.inf)
        self.over = False
        """Nothing of what still comes counts."""
        self._failure: TransientError | None = None

    def fail(self, error: TransientError) -> None:
        """The first failure is the one that is raised."""
        self._failure = self._failure or error
        self.over = True

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events as they come, and then what went wrong."""
        with self._outgoing:
            async for event in self._outgoing:
                yield event
        if self._failure is not None:
            raise self._failure


class _MayPass(Exception):
    """A failure that another attempt may not see."""

    def __init__(self, text: str, pause: float | None = None) -> None:
        super().__init__(text)
        self.pause = pause


class _Attempt:
    """One attempt: `with attempt:` keeps what may pass for the loop, and lets everything else through."""

    def __init__(self, where: str, deadline: float) -> None:
        self.failure: _MayPass | None = None
        self._where = where
        self._deadline = deadline

    def __enter__(self) -> None:
        self.failure = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        match error:
            case _MayPass():
                self.failure = error
            case httpx.ConnectError():
                self.failure = _MayPass(f"{self._where}: cannot be reached ({_said(error)}); is the server running?")
            case httpx.TransportError():
                self.failure = _MayPass(f"{self._where}: the connection failed: {_said(error)}")
            case TimeoutError():
                self.failure = _MayPass(f"{self._where}: no answer within {self._deadline:g} s")
            case _:
                return False
        self.failure.__cause__ = None if error is self.failure else error
        return True


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _complaint(answer: Mapping[str, Any] | None) -> str:
    """What an error answer says, in any of the forms that servers use."""
    if answer is None:
        return ""
    error = answer.get("error", answer.get("message", answer.get("detail", "")))
    if isinstance(error, Mapping):
        error = error.get("message", error)
    return " ".join(str(error).split())[:SAID]


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait: a number, or a date."""
    given = response.headers.get("retry-after")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(given)
        except ValueError:
            return None
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


@asynccontextmanager
async def connect(
    settings: ServerSettings,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    jitter: random.Random | None = None,
) -> AsyncIterator[Connection]:
    """A connection to a server, closed at the end. Nothing is sent yet.

    `transport`: what carries the requests, such as `httpx.MockTransport`; None: the network. `jitter`: of the pauses between attempts.
    """
    url = httpx.URL(settings.base_url)
    if url.scheme not in {"http", "https"} or not url.host:
        raise BackendError(f"base_url {settings.base_url!r} is no address: one looks like http://127.0.0.1:8000/v1")
    headers = {} if settings.api_key is None else {"Authorization": f"Bearer {settings.api_key}"}
    limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
    base = f"{settings.base_url.rstrip('/')}/"
    async with httpx.AsyncClient(
        base_url=base, headers=headers, limits=limits, timeout=settings.deadline, transport=transport
    ) as client:
        yield Connection(client, settings, jitter or random.Random())
