"""The SandboxFusion client: against a server on the loopback interface, and against answers made up for it on a virtual clock."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from envs.sandbox import (
    IsolationUnavailable,
    Limits,
    RunOutcome,
    RunRequest,
    Sandbox,
    SandboxError,
    SandboxUnavailable,
    Usage,
    conformance,
)
from envs.sandbox.sandbox_fusion import Retries, SandboxFusion
from envs.sandbox.scripted import ScriptedSandbox
from tests.envs.sandbox.fusion_server import serving
from tests.envs.sandbox.loops import LOOPS_OWN
from tests.thoroughness import THOROUGH

pytestmark = pytest.mark.anyio
URL = "http://fusion.test"
FINISHED = {"status": "Finished", "execution_time": 0.25, "return_code": 0, "stdout": "1\n", "stderr": ""}
SUCCESS = {"status": "Success", "message": "", "compile_result": None, "run_result": FINISHED, "files": {}}


@asynccontextmanager
async def fusion(handler: Callable[[httpx.Request], Any], **options: Any) -> AsyncIterator[SandboxFusion]:
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client,
        SandboxFusion(URL, client=client, **options) as sandbox,
    ):
        yield sandbox


def answering(**changes: Any) -> Callable[[httpx.Request], httpx.Response]:
    """A handler that gives a result with these fields changed."""
    return lambda request: httpx.Response(200, json=SUCCESS | {"run_result": FINISHED | changes})


# ---- what is sent, and what is made of the answer


async def test_sends_what_the_api_wants() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), json.loads(request.content)))
        return httpx.Response(200, json=SUCCESS)

    async with fusion(handler, languages={"shell": "bash"}) as sandbox:
        outcome = await sandbox.run(
            RunRequest("echo", "shell", stdin="in", files={"a.bin": b"\xff"}, limits=Limits(wall_clock=7, memory=99))
        )
    assert outcome == RunOutcome("exited", 0, None, "1\n", "", Usage(wall_clock=0.25))
    ((url, body),) = seen
    assert url == f"{URL}/run_code"
    assert body == {
        "code": "echo",
        "language": "bash",
        "stdin": "in",
        "files": {"a.bin": base64.b64encode(b"\xff").decode()},
        "compile_timeout": 7,
        "run_timeout": 7,
        "memory_limit_MB": 99,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"return_code": 3}, ("exited", 3, None)),
        ({"return_code": -11}, ("signalled", None, "SIGSEGV")),
        ({"return_code": -99}, ("signalled", None, "signal 99")),
        ({"status": "TimeLimitExceeded", "return_code": None}, ("wall_clock", None, None)),
        ({"stdout": "x" * 2_000_000}, ("output", None, None)),
    ],
)
async def test_outcomes(changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    async with fusion(answering(**changes)) as sandbox:
        outcome = await sandbox.run(RunRequest(""))
    assert (outcome.ending, outcome.exit_code, outcome.signal) == expected
    assert len(outcome.stdout) <= RunRequest("").limits.output


async def test_a_compilation_that_fails_is_the_outcome() -> None:
    compiled = FINISHED | {"return_code": 1, "stderr": "no such type"}
    answer = SUCCESS | {"status": "Failed", "compile_result": compiled, "run_result": None}
    async with fusion(lambda request: httpx.Response(200, json=answer)) as sandbox:
        outcome = await sandbox.run(RunRequest("", "cpp"))
    assert (outcome.exit_code, outcome.stderr) == (1, "no such type")


# ---- retries, on a virtual clock


async def test_asks_again_with_growing_pauses() -> None:
    moments = []

    def handler(request: httpx.Request) -> httpx.Response:
        moments.append(anyio.current_time())
        if len(moments) < 5:
            faults = [
                httpx.Response(503, text="busy"),
                httpx.Response(429),
                httpx.Response(200, json={"status": "SandboxError", "message": "no pod"}),
            ]
            if len(moments) == 4:
                raise httpx.ConnectError("refused")
            return faults[len(moments) - 1]
        return httpx.Response(200, json=SUCCESS)

    retries = Retries(attempts=5, first_pause=0.01, longest_pause=0.03)
    async with fusion(handler, retries=retries) as sandbox:
        assert (await sandbox.run(RunRequest(""))).ok
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    assert all(pause > due - 1e-9 for pause, due in zip(pauses, [0.01, 0.02, 0.03, 0.03], strict=True))


async def test_gives_up_and_says_what_the_server_said() -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(500, text="the pod has no memory left")

    async with fusion(handler, retries=Retries(attempts=3, first_pause=0)) as sandbox:
        with pytest.raises(
            SandboxUnavailable, match=r"no outcome in 3 attempt\(s\): status 500: the pod has no memory left"
        ):
            await sandbox.run(RunRequest(""))
    assert len(calls) == 3


async def test_a_server_that_never_answers() -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(3600)
        raise AssertionError

    async with fusion(handler, queue_seconds=0.03, retries=Retries(2, 0)) as sandbox:
        with pytest.raises(SandboxUnavailable, match=r"no answer within 0.05 s"):
            await sandbox.run(RunRequest("", limits=Limits(wall_clock=0.01)))


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(422, text="language: klingon"), "refuses the request with status 422: language: klingon"),
        (httpx.Response(404, text="not found"), "refuses the request with status 404"),
        (httpx.Response(200, text="<html>"), "does not answer as SandboxFusion: <html>"),
        (httpx.Response(200, json={"status": "Success", "run_result": None}), "gave no result"),
        (httpx.Response(200, json=SUCCESS | {"run_result": FINISHED | {"return_code": None}}), "gave no exit code"),
    ],
)
async def test_what_trying_again_cannot_mend(response: httpx.Response, message: str) -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return response

    async with fusion(handler) as sandbox:
        with pytest.raises(SandboxError, match=message) as caught:
            await sandbox.run(RunRequest(""))
    assert not isinstance(caught.value, SandboxUnavailable)
    assert len(calls) == 1


async def test_at_most_so_many_at_once() -> None:
    running = most = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1
        return httpx.Response(200, json=SUCCESS)

    async with fusion(handler, concurrency=3) as sandbox, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(sandbox.run, RunRequest(""))
    assert most == 3


async def test_claims_no_isolation_but_what_it_is_told() -> None:
    async with SandboxFusion(URL, trust={"network"}, require={"network"}) as sandbox:
        assert set(sandbox.isolation().isolated) == {"network"}
    with pytest.raises(IsolationUnavailable, match="cannot isolate filesystem"):
        async with SandboxFusion(URL, require={"filesystem"}):
            pytest.fail("it was opened")


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="'fusion:8080' is no address"):
        SandboxFusion("fusion:8080")
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        SandboxFusion(URL, concurrency=0)


async def test_must_be_open() -> None:
    with pytest.raises(SandboxUnavailable, match="not open"):
        await SandboxFusion(URL).run(RunRequest(""))


# ---- a real server, over sockets


@pytest.fixture
def real_clock(anyio_backend: Any) -> None:
    """Sockets and processes take real time."""
    if isinstance(anyio_backend, tuple) and anyio_backend[1]:
        pytest.skip("a virtual clock would not wait for the server")


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.usefixtures("real_clock")
async def test_conformance(check: conformance.Check) -> None:
    with serving() as (url, _):
        client = lambda: SandboxFusion(url, retries=Retries(2, 0.01))  # noqa: E731
        await check(conformance.Subject(client, seconds=1.5))


@pytest.mark.parametrize("check", conformance.CHECKS if THOROUGH else LOOPS_OWN, ids=lambda check: check.__name__)
def test_conformance_on_trio(check: conformance.Check) -> None:
    with serving() as (url, _):
        subject = conformance.Subject(lambda: SandboxFusion(url, retries=Retries(2, 0.01)), seconds=1.5)
        anyio.run(check, subject, backend="trio")


@pytest.mark.usefixtures("real_clock")
async def test_a_flaky_server() -> None:
    """Every other request fails by the server's fault, and yet each run gets its outcome."""
    with serving(lambda number: (503, "busy") if number % 2 else None) as (url, requests):
        async with SandboxFusion(url, concurrency=2, retries=Retries(8, 0.01)) as sandbox:
            for number in range(4):
                assert (await sandbox.run(RunRequest(f"print({number})"))).stdout == f"{number}\n"
    assert len(requests) > 4


# ---- the fake


async def test_scripted() -> None:
    answers = {"1": RunOutcome("exited", 0, stdout="one"), "2": SandboxUnavailable("away")}
    async with ScriptedSandbox(lambda request: answers[request.code], seconds=0.01) as sandbox:
        assert isinstance(sandbox, Sandbox)
        assert (await sandbox.run(RunRequest("1"))).stdout == "one"
        with pytest.raises(SandboxUnavailable, match="away"):
            await sandbox.run(RunRequest("2"))
        assert [request.code for request in sandbox.requests] == ["1", "2"]
        sandbox.isolation().require({"network", "memory"})
