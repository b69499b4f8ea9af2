"""The connection: what is tried again, how long it waits, what ends a request. On the virtual clock, with no network."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx
import pytest
from trio.testing import MockClock

from engine.backends import BackendError, RequestRejected, TransientError
from engine.backends.openai_compatible.connection import Connection, ServerSettings, Usage, connect

pytestmark = pytest.mark.anyio
KEY = "sk-very-secret"
OK = httpx.Response(200, json={"answer": 1, "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


def replies(*given: httpx.Response | Exception | float) -> httpx.MockTransport:
    """A server that answers in turn; a number is seconds that it takes before it gives the next."""
    left = list(given)

    async def handle(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, float):
            await anyio.sleep(answer)
            answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, httpx.Response)
        return answer

    return httpx.MockTransport(handle)


async def asked(transport: httpx.MockTransport, **settings: Any) -> tuple[dict[str, Any] | Exception, Usage, float]:
    """What one request gave, the usage, and the seconds it took."""
    server = ServerSettings("http://server/v1", KEY, **settings)
    async with connect(server, transport=transport, jitter=random.Random(0)) as connection:
        began = anyio.current_time()
        try:
            found: dict[str, Any] | Exception = await connection.post("completions", {"x": 1})
        except BackendError as error:
            found = error
        return found, connection.usage, anyio.current_time() - began


async def test_an_answer_is_given_as_it_is_and_its_tokens_are_counted() -> None:
    found, usage, seconds = await asked(replies(OK))
    assert found == {"answer": 1, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    assert usage == Usage(requests=1, prompt_tokens=3, completion_tokens=2)
    assert seconds == 0


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(503, json={"error": {"message": "busy"}}),
        httpx.Response(429),
        httpx.Response(408),
        httpx.Response(200, text="<html>a proxy's page</html>"),
        httpx.Response(200, text="[" * 100_000),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed"),
    ],
)
async def test_what_may_pass_is_tried_again_after_pauses_that_double(failure: httpx.Response | Exception) -> None:
    found, usage, seconds = await asked(replies(failure, failure, failure, OK))
    assert isinstance(found, dict)
    assert (usage.requests, usage.retries, usage.failed) == (1, 3, 0)
    assert 0.5 + 1 + 2 <= seconds <= 1.5 * (0.5 + 1 + 2)


async def test_the_pause_has_a_limit_and_the_attempts_too() -> None:
    found, usage, seconds = await asked(replies(*[httpx.Response(500)] * 6), attempts=6, backoff=4.0, backoff_limit=5.0)
    assert isinstance(found, TransientError)
    assert "http://server/v1/completions: 500: Internal Server Error (6 attempts)" in str(found)
    assert (usage.retries, usage.failed) == (5, 1)
    assert 4 * 5 <= seconds <= 5 * 5


@pytest.mark.parametrize(("given", "least"), [("7", 7.0), ("0", 0.0), ("nonsense", 0.5)])
async def test_the_server_may_say_how_long_to_wait(given: str, least: float) -> None:
    _, usage, seconds = await asked(replies(httpx.Response(429, headers={"Retry-After": given}), OK))
    assert usage.retries == 1
    assert least <= seconds <= (least if given.isdigit() else 0.75)


async def test_a_retry_date_in_the_past_means_now() -> None:
    date = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert (await asked(replies(httpx.Response(503, headers=date), OK)))[2] == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "max_tokens: too many", "param": "max_tokens"}}, "max_tokens: too many"),
        ({"error": "plain"}, "plain"),
        ({"detail": [{"loc": ["body"]}]}, "loc"),
        ({"message": "flat"}, "flat"),
    ],
)
async def test_what_trying_again_cannot_help_is_rejected_with_the_servers_words(
    body: dict[str, Any], said: str
) -> None:
    found, usage, _ = await asked(replies(httpx.Response(400, json=body)))
    assert isinstance(found, RequestRejected)
    assert said in str(found)
    assert usage == Usage(failed=1)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_no_matter_of_patience_and_is_not_shown(status: int) -> None:
    found, _, _ = await asked(replies(httpx.Response(status, json={"error": {"message": "wrong key"}})))
    assert type(found) is BackendError
    assert "wrong key" in str(found)
    assert KEY not in str(found)
    assert KEY not in repr(ServerSettings("http://server/v1", KEY))


async def test_an_attempt_has_a_deadline() -> None:
    found, usage, seconds = await asked(replies(100.0, 2.0, OK), deadline=10.0, backoff=0.0)
    assert isinstance(found, dict)
    assert (usage.retries, seconds) == (1, 12.0)
    found, _, seconds = await asked(replies(100.0, 100.0), deadline=10.0, attempts=2, backoff=0.0)
    assert isinstance(found, TransientError)
    assert "no answer within 10 s (2 attempts)" in str(found)
    assert seconds == 20


async def test_a_server_that_is_not_there_is_called_so() -> None:
    found, _, _ = await asked(replies(httpx.ConnectError("refused")), attempts=1)
    assert "cannot be reached (ConnectError: refused); is the server running?" in str(found)


async def test_no_more_requests_are_under_way_than_allowed_and_cancelling_frees_their_places() -> None:
    present = peak = 0

    async def handle(_: httpx.Request) -> httpx.Response:
        nonlocal present, peak
        present += 1
        peak = max(peak, present)
        try:
            await anyio.sleep(1)
        finally:
            present -= 1
        return OK

    async with connect(ServerSettings("http://server/v1", concurrency=3), transport=httpx.MockTransport(handle)) as to:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(to.post, "completions", {})
        assert (peak, anyio.current_time() - began) == (3, 3.0)
        with anyio.move_on_after(0.5):
            async with anyio.create_task_group() as tasks:
                for _ in range(9):
                    tasks.start_soon(to.post, "completions", {})
        assert present == 0
        await to.post("completions", {})
        assert to.usage.requests == 10


# ---- streams


class Chunks(httpx.AsyncByteStream):
    def __init__(self, *chunks: bytes | Exception | float) -> None:
        self.chunks = chunks
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, float):
                await anyio.sleep(chunk)
            elif isinstance(chunk, Exception):
                raise chunk
            else:
                yield chunk

    async def aclose(self) -> None:
        self.closed = True


def streamed(*chunks: bytes | Exception | float) -> tuple[Chunks, httpx.Response]:
    body = Chunks(*chunks)
    return body, httpx.Response(200, stream=body)


async def gather(connection: Connection, each: Callable[[dict[str, Any]], object] = lambda _: None) -> list[Any]:
    found = []
    async with connection.stream("chat/completions", {}) as events:
        async for event in events:
            each(event)
            found.append(event)
    return found


async def test_events_come_as_they_are_written_however_the_network_cuts_them() -> None:
    body, response = streamed(
        b": a comment\n\nda",
        b'ta: {"n": 1}\r\n\r\ndata:{"n": "\xc3',
        b'\xa4", "usage": {"completion_tokens": 5}}\n\nda',
        b"ta: [DONE]\n\n",
    )
    async with connect(ServerSettings("http://server/v1"), transport=replies(httpx.Response(500), response)) as to:
        found = await gather(to)
        assert [event["n"] for event in found] == [1, "ä"]
        assert (to.usage.requests, to.usage.retries, to.usage.completion_tokens) == (1, 1, 5)
    assert body.closed


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ((b'data: {"n": 1}\n\n', httpx.ReadError("reset")), "the stream broke off"),
        ((b'data: {"n": 1}\n\n', b'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
        ((b'data: {"n": 1}\n\n', b"data: {oops\n\n"), "not JSON"),
        ((b'data: {"n": 1}\n\n', 100.0), "no whole answer within 10 s"),
    ],
)
async def test_a_stream_that_began_is_not_begun_again(chunks: tuple[Any, ...], said: str) -> None:
    body, response = streamed(*chunks)
    seen: list[Any] = []
    async with connect(ServerSettings("http://server/v1", deadline=10.0), transport=replies(response)) as to:
        with pytest.raises(TransientError, match=said):
            await gather(to, seen.append)
    assert seen == [{"n": 1}]
    assert body.closed


async def test_leaving_a_stream_early_closes_it() -> None:
    body, response = streamed(b'data: {"n": 1}\n\n', 1000.0)
    async with connect(ServerSettings("http://server/v1"), transport=replies(response)) as to:
        with anyio.move_on_after(5):
            await gather(to)
    assert body.closed


@pytest.mark.parametrize("url", ["server/v1", "ftp://server", "http://"])
async def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(BackendError, match="is no address"):
        async with connect(ServerSettings(url)):
            pass
