"""Against a real server of other people's making, `transformers serve`, where it is installed: `pip install 'transformers[serving]'`, then
`python -m pytest tests/backends/openai_compatible/test_transformers_serve.py`. It gives texts and counts, no token ids."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.backends import RequestRejected, SampleRequest, SamplingParams
from engine.backends import openai_compatible as client
from engine.completion import chat_api
from engine.rendering import Delta, get_renderer, load_vocabulary, user
from recipes import tiny
from tests.backends.openai_compatible.processes import running

pytestmark = [pytest.mark.anyio, pytest.mark.local, pytest.mark.slow]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
START = "import sys; sys.argv[0] = 'transformers'; from transformers.cli.transformers import main; main()"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "torch")):
        pytest.skip("the server is not installed: pip install 'transformers[serving]'")
    directory = tiny.make_model(tmp_path_factory.mktemp("served") / "model", seed=0)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-c", START, "serve", "--host", "127.0.0.1"]
    with running(lambda port: [*command, "--port", str(port)], log, environment={"HF_HUB_OFFLINE": "1"}) as url:
        yield url


async def test_it_answers_and_counts(model: Path, address: str) -> None:
    params = SamplingParams(max_tokens=8, temperature=1e-4)
    async with chat_api.open(str(model), base_url=address) as completer:
        whole = await completer.complete([user("1 + 2?")], params=params, seed=0)
        said: list[Delta] = []
        streamed = await completer.stream([user("1 + 2?")], said.append, params=params, seed=0)
    prompt = get_renderer("template", load_vocabulary(model)).generation_prompt([user("1 + 2?")])
    assert whole.prompt_tokens == prompt.length  # our rendering of its template, and its own
    assert (whole.completion_tokens, whole.stop_reason) == (8, "length")
    assert (streamed.completion_tokens, streamed.stop_reason) == (8, "length")
    assert "".join(delta.text for delta in said) == streamed.text
    assert completer.connection.usage.requests == 2


async def test_what_it_cannot_do_is_said(model: Path, address: str) -> None:
    async with client.open(str(model), base_url=address) as backend:
        snapshot = await backend.snapshot().result()
        prompt = get_renderer("template", load_vocabulary(model)).generation_prompt([user("1?")])
        with pytest.raises(RequestRejected, match="Unexpected fields in the request"):
            await backend.sample(snapshot, SampleRequest(prompt, SamplingParams(max_tokens=2), seed=0))
