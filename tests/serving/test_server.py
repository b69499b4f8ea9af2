"""The endpoint behind a real server on loopback, with our own client on the other side: a model that is served and used through HTTP is the same model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from engine.backends import (
    BackendError,
    ImageChunk,
    ModelInput,
    RequestRejected,
    SampleRequest,
    SamplingParams,
    TokenChunk,
    conformance,
)
from engine.backends import openai_compatible as client
from engine.completion import PolicyCompleter, SnapshotPolicy, chat_api
from engine.rendering import Delta, get_renderer, user
from engine.serving.endpoint import Endpoint
from engine.serving.served import ServedPolicy
from engine.serving.server import serving
from recipes import tiny
from tests.serving.policies import RENDERER, Streams, tokens_of

pytestmark = [pytest.mark.anyio, pytest.mark.local]
KEY = "s3cret"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real sockets want a real clock."""
    return str(request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny.make_model(tmp_path_factory.mktemp("served") / "model", seed=0, context=64)


@asynccontextmanager
async def served(model: Path) -> AsyncIterator[tuple[Any, Any, str]]:
    """A local backend, a snapshot of it, and the address where that snapshot is served as `tiny`."""
    from engine.backends import local

    async with local.open(model, threads=1) as backend:
        snapshot = await backend.snapshot().result()
        policy = ServedPolicy(
            SnapshotPolicy(backend, snapshot),
            get_renderer("role_colon", backend.tokenizer),
            backend.capabilities.max_context,
        )
        endpoint = Endpoint({"tiny": policy}, api_key=KEY)
        async with serving(endpoint) as address:
            yield backend, snapshot, address


async def test_what_comes_through_http_is_what_the_backend_samples(model: Path) -> None:
    async with (
        served(model) as (backend, snapshot, address),
        client.open("tiny", base_url=address, api_key=KEY) as remote,
    ):
        assert remote.capabilities.max_context == 64
        theirs = await remote.snapshot().result()
        prompt = ModelInput.from_tokens([5, 6, 7, 8])
        request = SampleRequest(prompt, SamplingParams(max_tokens=9, temperature=0.7, top_k=50), seed=3, num_samples=3)
        completions = await remote.sample(theirs, request)
        assert len({completion.tokens.tobytes() for completion in completions}) > 1
        for completion in completions:
            whole = prompt.append(completion.tokens)
            own = await backend.compute_logprobs(snapshot, whole)
            assert own[4:].tolist() == pytest.approx(completion.logprobs.tolist(), abs=1e-5)
            scored = await remote.compute_logprobs(theirs, whole)
            assert scored[1:].tolist() == pytest.approx(own[1:].tolist(), abs=1e-5)
        assert remote.connection.usage.completion_tokens > 20


async def test_an_answer_streams_through_http_as_it_is(model: Path) -> None:
    async with served(model) as (backend, snapshot, address):
        renderer = get_renderer("role_colon", backend.tokenizer)
        params = SamplingParams(max_tokens=12)
        here = await PolicyCompleter(SnapshotPolicy(backend, snapshot), renderer).complete(
            [user("1 + 2?")], params=params, seed=4
        )
        async with chat_api.open("tiny", base_url=address, api_key=KEY) as completer:
            said: list[Delta] = []
            streamed = await completer.stream([user("1 + 2?")], said.append, params=params, seed=4)
            whole = await completer.complete([user("1 + 2?")], params=params, seed=4)
        assert (whole.text, whole.stop_reason) == (here.text, here.stop_reason)
        assert streamed.completion_tokens == here.completion_tokens
        assert "".join(delta.text for delta in said).strip() == here.text.strip()


SAMPLING = [check for check in conformance.CHECKS if check.__module__.endswith("sampling")]
TRAINS = "it samples and scores; nothing is trained"
GAPS = {
    **{check.__name__: TRAINS for check in conformance.CHECKS if check not in SAMPLING},
    "samples_do_not_depend_on_company": "the check trains a step to have two snapshots",
    "logprobs_agree": "the check trains a step first",
    "snapshots_are_frozen": "the server has one policy",
    "cancelled_calls_leave_nothing": "the check trains a step at its end",
    "images_are_taken_or_rejected": "the check asks training, too, to refuse the image by name",
}


@pytest.mark.parametrize("check", SAMPLING, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check, model: Path) -> None:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Any]:
        async with served(model) as (_, _, address), client.open("tiny", base_url=address, api_key=KEY) as remote:
            yield remote

    subject = conformance.Subject(open=opening, tokens=range(100, 164), gaps=GAPS)
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    await check(subject)


async def test_what_the_server_refuses_is_said_in_its_words(model: Path) -> None:
    async with served(model) as (_, _, address):
        with pytest.raises(BackendError, match="refused the key") as refused:
            async with client.open("tiny", base_url=address, api_key="wrong"):
                pass
        assert "wrong" not in str(refused.value)
        with pytest.raises(BackendError, match="serves no model 'other'; it serves tiny"):
            async with client.open("other", base_url=address, api_key=KEY):
                pass
        async with client.open("tiny", base_url=address, api_key=KEY) as remote:
            snapshot = await remote.snapshot().result()
            request = SampleRequest(ModelInput.from_tokens([10**5]), SamplingParams(max_tokens=2), seed=0)
            with pytest.raises(RequestRejected, match="token id 100000"):
                await remote.sample(snapshot, request)
            with pytest.raises(RequestRejected, match="cannot train"):
                remote.forward_backward([], conformance.subject.CROSS_ENTROPY)


async def test_an_image_is_refused_by_name(model: Path) -> None:
    """The half of `images_are_taken_or_rejected` that is about sampling: the declared gap is about training alone."""
    async with served(model) as (_, _, address), client.open("tiny", base_url=address, api_key=KEY) as remote:
        snapshot = await remote.snapshot().result()
        prompt = ModelInput((TokenChunk([5, 6]), ImageChunk(b"png", 4)))
        with pytest.raises(RequestRejected, match="prompt: it holds an image"):
            await remote.sample(snapshot, SampleRequest(prompt, SamplingParams(max_tokens=2), seed=0))
        with pytest.raises(RequestRejected, match="sequence: it holds an image"):
            await remote.compute_logprobs(snapshot, prompt)


async def test_a_client_that_hangs_up_frees_the_policy() -> None:
    policy = Streams(tokens_of_hello() * 1000, seconds=0.001)
    endpoint = Endpoint({"policy": ServedPolicy(policy, RENDERER)}, api_key=None)
    async with serving(endpoint) as address, httpx.AsyncClient() as http:
        body = {"model": "policy", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        async with http.stream("POST", f"{address}/chat/completions", json=body) as response:
            assert response.status_code == 200
            with anyio.move_on_after(0.2):
                async for _ in response.aiter_raw():
                    pass
        with anyio.fail_after(10):
            while policy.present or endpoint.present:  # noqa: ASYNC110  (the server notices when it notices)
                await anyio.sleep(0.01)


async def test_clients_that_leave_streams_of_a_model_disturb_nobody(model: Path) -> None:
    """Tokens that are on their way from the sampler's thread find that whoever wanted them has left: on trio an error there would end the run."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 60, "n": 16, "stream": True, "return_token_ids": True}

    def leave(address: str) -> None:
        with httpx.stream("POST", f"{address}/completions", json=body, headers=headers, timeout=60) as response:
            next(response.iter_raw())

    async with served(model) as (_, _, address):
        for _ in range(5):
            await anyio.to_thread.run_sync(leave, address)
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            answer = await http.post(f"{address}/completions", json={"model": "tiny", "prompt": [5], "max_tokens": 3})
    assert answer.json()["usage"]["completion_tokens"] == 3


def tokens_of_hello() -> list[int]:
    from engine.rendering import assistant

    return tokens_of(assistant("Hello."))


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_ends_answers_under_way_within_the_grace_and_says_so(stream: bool) -> None:
    policy = Streams(tokens_of_hello(), seconds=1000.0)
    endpoint = Endpoint({"policy": ServedPolicy(policy, RENDERER)}, api_key=None)
    body = {"model": "policy", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    with anyio.fail_after(20):
        async with httpx.AsyncClient() as http, anyio.create_task_group() as tasks, serving(endpoint) as address:
            said: list[str] = []

            async def ask() -> None:
                said.append((await http.post(f"{address}/chat/completions", json=body, timeout=60)).text)

            tasks.start_soon(ask)
            while not policy.present:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert policy.present == endpoint.present == 0
        assert '"message":"the server is stopping"' in said[0].replace(": ", ":")


async def test_an_address_that_others_reach_needs_a_key_and_a_port_is_one_servers() -> None:
    open_to_all = Endpoint({}, api_key=None)
    with pytest.raises(ValueError, match="other machines can reach it"):
        async with serving(open_to_all, host="0.0.0.0"):
            pass
    async with serving(open_to_all) as address:
        port = httpx.URL(address).port or 0
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1 port {port}"):
            async with serving(open_to_all, port=port):
                pass


def test_the_recipe_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "recipes.serve", "--model", "tiny", "--port", "0"]
    environment = {**os.environ, "CALLSHEET_API_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        line = server.stdout.readline()
        address = line.split()[-1]
        assert line.startswith("serving   tiny at http://127.0.0.1:")
        assert KEY not in server.stdout.readline()
        answer = httpx.post(
            f"{address}/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        )
        assert answer.json()["usage"]["completion_tokens"] == 3
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
        assert server.stderr.read() == "stopping\n"


def test_an_interrupt_in_the_middle_of_a_stream_ends_both_without_noise() -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "recipes.serve", "--model", "tiny", "--port", "0", "--no-key"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        address = server.stdout.readline().split()[-1]
        body = {"model": "tiny", "prompt": "a", "max_tokens": 100, "n": 16, "stream": True}
        for interrupt in (False, True):  # a client that leaves, and then a server that does
            with httpx.stream("POST", f"{address}/completions", json=body, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                if interrupt:
                    server.send_signal(signal.SIGINT)
                    assert [line for line in lines if line]
        assert server.wait(30) == 130
        assert server.stderr.read() == "stopping\n"
