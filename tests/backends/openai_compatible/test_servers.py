"""Servers that do some things in their own way: how they are recognised, what they are asked for, where their answers are cut."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from engine.backends import ModelInput, SampleRequest, SamplingParams
from engine.backends import openai_compatible as client
from engine.backends.openai_compatible.servers import ANY, LLAMA_CPP, context_of, recognised

pytestmark = pytest.mark.anyio
LLAMA = {"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": 256, "n_ctx_train": 8192}}
VLLM = {"id": "m", "owned_by": "vllm", "max_model_len": 4096}
PIECES = [(5, "It"), (6, " is"), (7, " 5"), (8, ".\n"), (9, "\nUs"), (10, "er:"), (11, " no")]


def test_a_server_is_known_by_its_list_of_models() -> None:
    assert (recognised(LLAMA), context_of(LLAMA)) == (LLAMA_CPP, 256)
    assert (recognised(VLLM), context_of(VLLM)) == (ANY, 4096)
    assert (recognised({}), context_of({"meta": None})) == (ANY, None)


class Served:
    """A server that says all of PIECES, and keeps what it was asked."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [self.entry]})
        self.asked.append(json.loads(request.content))
        content = [
            {"id": token, "token": text, "bytes": list(text.encode()), "logprob": -token / 10} for token, text in PIECES
        ]
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": {"content": content}}
        return httpx.Response(200, json={"choices": [choice], "usage": {}})


async def sampled(server: Served, **params: Any) -> Any:
    async with client.open("m", base_url="http://server/v1", transport=httpx.MockTransport(server)) as backend:
        snapshot = await backend.snapshot().result()
        request = SampleRequest(ModelInput.from_tokens([1, 2]), SamplingParams(max_tokens=9, **params), 0)
        (completion,) = await backend.sample(snapshot, request)
        return completion


@pytest.mark.parametrize(
    ("stop", "tokens"),
    [
        ((), 7),
        ((7,), 3),
        (("\n\nUser:",), 6),  # over three tokens: the last one completes it
        (("is",), 2),
        ((8, "It"), 1),
        ((99, "never"), 7),
    ],
)
async def test_llama_cpps_answers_are_cut_here_with_the_tokens_of_the_stop(
    stop: tuple[int | str, ...], tokens: int
) -> None:
    server = Served(LLAMA)
    completion = await sampled(server, stop=stop)
    assert completion.tokens.tolist() == [token for token, _ in PIECES[:tokens]]
    assert completion.logprobs.tolist() == pytest.approx([-token / 10 for token, _ in PIECES[:tokens]])
    assert completion.stop_reason == ("length" if tokens == 7 else "stop")
    (body,) = server.asked
    assert not body.keys() & {"stop", "stop_token_ids"}


async def test_llama_cpp_is_asked_for_all_of_its_distribution_unless_the_request_wants_less() -> None:
    server = Served(LLAMA)
    await sampled(server)
    await sampled(server, top_k=5)
    assert [(body["top_k"], body["min_p"]) for body in server.asked] == [(0, 0.0), (5, 0.0)]


async def test_others_get_the_stops_and_no_fields_of_their_own() -> None:
    server = Served(VLLM)
    completion = await sampled(server, stop=(7, "x"))
    assert len(completion.tokens) == 7  # what the server gave is what it sampled
    (body,) = server.asked
    assert (body["stop"], body["stop_token_ids"]) == (["x"], [7])
    assert not body.keys() & {"top_k", "min_p"}
