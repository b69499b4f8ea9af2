"""Embedders: one conformance suite for all; the encoder beside transformers' own forward pass; HTTP with every way a server can fail."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.retrieval import Embedder, HashingEmbedder, HttpSettings, conformance, open_http_embedder
from engine.retrieval.conformance import NotConforming
from engine.runtime.simulation import simulate

BASE = "http://embeddings.test/v1"


# ---- a server's answers, by hand


def answer(texts: list[str]) -> dict[str, Any]:
    vectors = HashingEmbedder(64).embed_now(texts) * 3.0  # servers need not normalise
    rows = [{"object": "embedding", "index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)]
    return {"object": "list", "data": rows[::-1], "usage": {"prompt_tokens": 7, "total_tokens": 7}}


def serve(handle: Callable[[httpx.Request, list[str]], httpx.Response | None]) -> httpx.MockTransport:
    def respond(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        return handle(request, asked["input"]) or httpx.Response(200, json=answer(asked["input"]))

    return httpx.MockTransport(respond)


@asynccontextmanager
async def over_http() -> AsyncIterator[Embedder]:
    async with open_http_embedder(
        BASE, "m", settings=HttpSettings(batch_size=2), transport=serve(lambda *_: None)
    ) as embedder:
        yield embedder


@asynccontextmanager
async def hashing() -> AsyncIterator[Embedder]:
    yield HashingEmbedder()


@asynccontextmanager
async def fitted() -> AsyncIterator[Embedder]:
    yield HashingEmbedder(256).fitted(["the capital of", "the price of", "a pound of butter"])


@pytest.mark.anyio
@pytest.mark.parametrize("check", conformance.EMBEDDER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("opener", [hashing, fitted, over_http])
async def test_conformance(opener, check) -> None:
    async with opener() as embedder:
        await check(embedder)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["norm", "dtype", "company", "meaningless"])
async def test_the_suite_notices(way: str) -> None:
    class Broken:
        dimensions = 512
        unit_norm = True
        calls = 0

        async def embed(self, texts, *, purpose="document"):
            self.calls += 1
            embeddings = HashingEmbedder().embed_now(texts)
            if way == "norm":
                return embeddings * 2
            if way == "dtype":
                return embeddings.astype(np.float64)
            if way == "company" and len(texts):
                return np.roll(embeddings, self.calls, axis=1)
            if way == "meaningless":
                return HashingEmbedder().embed_now(["same"] * len(texts))
            return embeddings

    broken = 0
    for check in conformance.EMBEDDER_CHECKS:
        try:
            await check(Broken())
        except NotConforming:
            broken += 1
    assert broken >= 1


# ---- hashing


def test_hashing_is_the_same_in_every_process() -> None:
    code = (
        "from engine.retrieval import HashingEmbedder; print(HashingEmbedder(16).embed_now(['one two', '']).tolist())"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    ]
    assert run[0] == run[1]
    assert json.loads(run[0]) == HashingEmbedder(16).embed_now(["one two", ""]).tolist()


def test_rare_words_weigh_more_when_fitted() -> None:
    corpus = [f"the river number {n}" for n in range(50)] + ["the Seine"]
    embedder = HashingEmbedder(characters=(0, 0)).fitted(corpus)
    assert embedder.idf["the"] == pytest.approx(1.0)
    assert embedder.idf["seine"] == pytest.approx(1 + math.log(52 / 2))
    plain, weighed = (
        e.embed_now(["the Seine", "the road", "a Seine"]) for e in (HashingEmbedder(characters=(0, 0)), embedder)
    )
    assert plain[0] @ plain[1] == pytest.approx(plain[0] @ plain[2], abs=1e-6) == pytest.approx(0.5, abs=1e-6)
    assert weighed[0] @ weighed[2] > 0.6 > 0.1 > weighed[0] @ weighed[1]


def test_words_spelt_alike_are_near() -> None:
    a, b, c = HashingEmbedder().embed_now(["swimming", "swimmer", "arithmetic"])
    assert a @ b > 0.05 > abs(a @ c)


# ---- HTTP


@pytest.mark.anyio
async def test_http_request_and_answer() -> None:
    seen: list[tuple[str, dict[str, Any], str | None]] = []

    def handle(request: httpx.Request, texts: list[str]) -> None:
        seen.append((str(request.url), json.loads(request.content), request.headers.get("authorization")))

    settings = HttpSettings(query_prefix="query: ", document_prefix="passage: ", batch_size=2)
    async with open_http_embedder(
        f"{BASE}/", "e5", api_key="secret", settings=settings, transport=serve(handle)
    ) as embedder:
        assert embedder.dimensions is None
        found = await embedder.embed(["a", "b", "c"])
        assert (embedder.dimensions, embedder.prompt_tokens) == (64, 14)
        await embedder.embed(["q"], purpose="query")
    np.testing.assert_allclose(
        found, HashingEmbedder(64).embed_now(["passage: a", "passage: b", "passage: c"]), atol=1e-6
    )
    url, body, authorization = min(seen, key=lambda asked: asked[1]["input"])
    assert (url, authorization) == (f"{BASE}/embeddings", "Bearer secret")
    assert body == {"model": "e5", "input": ["passage: a", "passage: b"], "encoding_format": "float"}
    assert sorted(tuple(asked[1]["input"]) for asked in seen) == [
        ("passage: a", "passage: b"),
        ("passage: c",),
        ("query: q",),
    ]


def test_what_may_pass_is_tried_again() -> None:
    """Rate limits, 5xx and broken connections; the pauses are drawn between 0 and a doubling ceiling, or are the server's."""
    failures: list[Any] = [429, 503, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")]
    times: list[float] = []

    def handle(request: httpx.Request, texts: list[str]) -> httpx.Response | None:
        times.append(anyio.current_time())
        if not failures:
            return None
        failure = failures.pop(0)
        if isinstance(failure, Exception):
            raise failure
        headers = {"retry-after": "7"} if failure == 429 else {}
        return httpx.Response(failure, json={"error": {"message": "later"}}, headers=headers)

    async def program() -> int:
        async with open_http_embedder(BASE, "m", transport=serve(handle)) as embedder:
            await embedder.embed(["a"])
            return embedder.retries

    assert simulate(program).unwrap() == 4
    pauses = np.diff(times)
    assert 7 <= pauses[0] <= 7.1
    for attempt, pause in enumerate(pauses[1:], 1):
        assert 0 <= pause <= 0.5 * 2**attempt


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_cannot_help_is_not_tried_again(status: int) -> None:
    asked = []

    def handle(request: httpx.Request, texts: list[str]) -> httpx.Response | None:
        asked.append(texts)
        return httpx.Response(status, json={"error": {"message": "no such\nmodel"}}) if "bad" in texts else None

    async def program() -> None:
        async with open_http_embedder(
            BASE, "m", settings=HttpSettings(batch_size=1), transport=serve(handle)
        ) as embedder:
            await embedder.embed(["fine", "bad"])

    with pytest.raises(RequestRejected, match=rf"texts 1 to 1, model 'm'.*{status} no such model"):
        simulate(program).unwrap()
    assert asked.count(["bad"]) == 1


@pytest.mark.parametrize("how", ["busy", "silent"])
def test_the_deadline_holds(how: str) -> None:
    async def respond(request: httpx.Request) -> httpx.Response:
        if how == "silent":
            await anyio.sleep_forever()
        return httpx.Response(503, text="busy")

    async def program() -> float:
        began = anyio.current_time()
        async with open_http_embedder(
            BASE, "m", settings=HttpSettings(deadline=100, request_timeout=20), transport=httpx.MockTransport(respond)
        ) as embedder:
            with pytest.raises(
                TransientError, match=r"1 texts were not embedded within 100 s; the last of \d+ failures: "
            ):
                await embedder.embed(["a"])
        return anyio.current_time() - began

    assert simulate(program).unwrap() == pytest.approx(100, abs=0.01)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"data": []}',
        b'{"data": [{"index": 1, "embedding": [1.0]}]}',
        b'{"data": [{"index": 0, "embedding": []}]}',
        b'{"data": [{"index": 0, "embedding": ["x"]}]}',
        b'{"data": [{"index": 0, "embedding": [0.0, 0.0]}]}',
        b'{"data": [{"index": 0, "embedding": [NaN, 1.0]}]}',
        b'{"data": [{"embedding": [1.0]}]}',
    ],
)
async def test_an_answer_that_cannot_be_used(body: bytes) -> None:
    transport = serve(lambda *_: httpx.Response(200, content=body))
    async with open_http_embedder(BASE, "m", transport=transport) as embedder:
        with pytest.raises(BackendError, match=r"POST .*/embeddings: the answer cannot be used"):
            await embedder.embed(["a"])


def test_concurrency_is_bounded() -> None:
    under_way, most = 0, 0

    async def respond(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await anyio.sleep(1)
        under_way -= 1
        return httpx.Response(200, json=answer(json.loads(request.content)["input"]))

    async def program() -> float:
        settings = HttpSettings(batch_size=1, concurrency=3)
        async with (
            open_http_embedder(BASE, "m", settings=settings, transport=httpx.MockTransport(respond)) as embedder,
            anyio.create_task_group() as group,
        ):
            for _ in range(3):
                group.start_soon(embedder.embed, ["a", "b", "c"])
        return anyio.current_time()

    report = simulate(program)
    report.unwrap()
    assert most == 3
    assert report.seconds == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_against_a_real_socket(backend: str) -> None:
    """On a clock that is not virtual: waiting for a socket looks idle to one that jumps."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(answer(asked["input"])).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    texts = [str(number) for number in range(200)]

    async def embed() -> Any:
        async with open_http_embedder(f"http://127.0.0.1:{server.server_port}/v1", "m") as embedder:
            return await embedder.embed(texts)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        np.testing.assert_allclose(anyio.run(embed, backend=backend), HashingEmbedder(64).embed_now(texts), atol=1e-6)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_importing_loads_no_http_client() -> None:
    code = "import sys, engine.retrieval; print([m for m in ('httpx', 'torch', 'chromadb', 'transformers') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
