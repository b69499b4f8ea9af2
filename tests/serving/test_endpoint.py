"""The endpoint, asked as clients ask it, without a network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.backends import BackendError, Completion, RequestRejected, SampleRequest, TransientError
from engine.rendering import ToolCallPart, assistant, system, user
from engine.serving import requests
from engine.serving.endpoint import Endpoint
from engine.serving.errors import ApiError
from engine.serving.limits import Limits
from engine.serving.served import ServedPolicy
from tests.serving.policies import RENDERER, Says, Streams, tokens_of

pytestmark = pytest.mark.anyio
HELLO = tokens_of(assistant("Hello there.", thinking="greet"))
CALL = tokens_of(assistant("One moment.", tool_calls=[ToolCallPart("add", {"a": 1, "b": [2]})]))
ASK = {"model": "policy", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@asynccontextmanager
async def client(
    policy: Says, *, key: str | None = None, given: str | None = None, max_context: int | None = None, **more: Any
) -> AsyncIterator[httpx.AsyncClient]:
    endpoint = Endpoint({"policy": ServedPolicy(policy, RENDERER, max_context)}, api_key=key, **more)
    transport = httpx.ASGITransport(endpoint.application())  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://test/v1", headers=headers) as http:
        yield http
        assert endpoint.present == 0


async def post(policy: Says, path: str, body: Mapping[str, Any], **more: Any) -> httpx.Response:
    async with client(policy, **more) as http:
        return await http.post(path, json=body)


async def chat(policy: Says, **fields: Any) -> dict[str, Any]:
    response = await post(policy, "chat/completions", {**ASK, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *bodies, last = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(body) for body in bodies]


# ---- chat


async def test_a_chat_answer_holds_what_the_policy_said() -> None:
    policy = Says(HELLO)
    answer = await chat(policy, n=2, temperature=0.5, top_p=0.9, top_k=3, seed=11, max_completion_tokens=99)
    request = policy.requests[0]
    assert request.prompt == RENDERER.generation_prompt([user("Hi")])
    assert (request.seed, request.num_samples) == (11, 2)
    assert (request.params.temperature, request.params.top_p, request.params.top_k) == (0.5, 0.9, 3)
    assert (request.params.max_tokens, request.params.stop) == (99, RENDERER.stop_sequences())
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "policy"
    assert answer["id"].startswith("chatcmpl-")
    for index, choice in enumerate(answer["choices"]):
        assert choice == {
            "index": index,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hello there.", "reasoning_content": "greet"},
        }
    read, written = request.prompt.length, 2 * len(HELLO)
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def test_calls_of_tools_are_the_clients_to_run() -> None:
    policy = Says(CALL)
    answer = await chat(policy, tools=[TOOL])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "add")
    assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": [2]}
    assert call["id"]
    with_tools = RENDERER.generation_prompt([user("Hi")], tools=[_spec()])
    assert policy.requests[0].prompt == with_tools
    await chat(policy, tools=[TOOL], tool_choice="none")
    assert policy.requests[1].prompt != with_tools


def _spec() -> Any:
    from engine.rendering import ToolSpec

    return ToolSpec.from_openai(TOOL)


async def test_tokens_and_logprobs_are_told_to_whoever_asks() -> None:
    answer = await chat(Says(HELLO), logprobs=True, return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == HELLO
    assert answer["prompt_token_ids"] == RENDERER.generation_prompt([user("Hi")]).tokens.tolist()
    content = choice["logprobs"]["content"]
    assert [entry["id"] for entry in content] == HELLO
    assert [entry["logprob"] for entry in content] == [-n / 8 for n in range(len(HELLO))]
    spelt = b"".join(bytes(entry["bytes"]) for entry in content)
    assert spelt.decode() == RENDERER.vocabulary.decode(HELLO)


async def test_a_clients_stop_string_ends_the_text_before_it() -> None:
    policy = Says(tokens_of(assistant("one END two"))[:-1])
    answer = await chat(policy, stop="END")
    assert answer["choices"][0]["message"]["content"] == "one "
    assert policy.requests[0].params.stop == (*RENDERER.stop_sequences(), "END")


@pytest.mark.parametrize("kind", [Says, Streams])
@pytest.mark.parametrize("tokens", [HELLO, CALL])
async def test_a_stream_adds_up_to_the_whole_answer(kind: type[Says], tokens: list[int]) -> None:
    whole = await chat(kind(tokens), n=2, logprobs=True, return_token_ids=True, tools=[TOOL])
    fields = {**ASK, "n": 2, "stream": True, "logprobs": True, "return_token_ids": True, "tools": [TOOL]}
    response = await post(kind(tokens), "chat/completions", {**fields, "stream_options": {"include_usage": True}})
    *chunks, last = events(response)
    assert last["usage"] == whole["usage"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    for expected in whole["choices"]:
        index = expected["index"]
        found = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        text = {name: "".join(c["delta"].get(name) or "" for c in found) for name in ("content", "reasoning_content")}
        assert text["content"] == (expected["message"]["content"] or "")
        assert text["reasoning_content"] == expected["message"].get("reasoning_content", "")
        calls = [call for c in found for call in c["delta"].get("tool_calls", ())]
        assert [call["function"] for call in calls] == [
            call["function"] for call in expected["message"].get("tool_calls", ())
        ]
        assert found[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in found if c["finish_reason"]] == [expected["finish_reason"]]
        assert [token for c in found for token in c.get("token_ids", ())] == expected["token_ids"]
        logprobs = [entry for c in found for entry in (c.get("logprobs") or {"content": ()})["content"]]
        assert logprobs == expected["logprobs"]["content"]


@pytest.mark.parametrize("stop", ["END", "N", "one E", "zzz"])
async def test_a_stream_never_shows_the_beginning_of_a_stop_string(stop: str) -> None:
    tokens = tokens_of(assistant("one END two EN"))
    whole = await chat(Says(tokens), stop=[stop])
    response = await post(Streams(tokens), "chat/completions", {**ASK, "stop": [stop], "stream": True})
    text = "".join(c["delta"].get("content") or "" for e in events(response) for c in e["choices"])
    assert text == whole["choices"][0]["message"]["content"] == "one END two EN".split(stop, maxsplit=1)[0]


async def test_events_go_out_while_tokens_come_in() -> None:
    """A hand-made client, since httpx's transport waits for the end."""
    came: list[tuple[float, bytes]] = []
    endpoint = Endpoint({"policy": ServedPolicy(Streams(HELLO, seconds=1.0), RENDERER)}, api_key=None)
    body = json.dumps({**ASK, "stream": True}).encode()

    async def receive() -> dict[str, Any]:
        if not body_sent:
            body_sent.append(True)
            return {"type": "http.request", "body": body}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            came.append((anyio.current_time(), message["body"]))

    body_sent: list[bool] = []
    began = anyio.current_time()
    await endpoint.application()(_scope("/v1/chat/completions"), receive, send)  # type: ignore[arg-type]
    times = [at - began for at, data in came if b"content" in data]
    assert times[0] == 0
    assert len(set(times)) > len("Hello there.") // 2
    assert times[-1] <= len(HELLO)


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "root_path": "",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_takes_its_request_along(stream: bool) -> None:
    policy = Streams(HELLO, seconds=10.0) if stream else Says(HELLO, seconds=1000.0)
    endpoint = Endpoint({"policy": ServedPolicy(policy, RENDERER)}, api_key=None)
    body = json.dumps({**ASK, "stream": stream}).encode()
    said = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        message = next(said, None)
        if message is None:
            await anyio.sleep(25)
            return {"type": "http.disconnect"}
        return message

    async def send(_: Mapping[str, Any]) -> None: ...

    began = anyio.current_time()
    await endpoint.application()(_scope("/v1/chat/completions"), receive, send)  # type: ignore[arg-type]
    assert anyio.current_time() - began == 25
    assert (policy.present, endpoint.present, len(policy.requests)) == (0, 0, 1)


# ---- text


async def test_text_in_text_out() -> None:
    policy = Says(RENDERER.vocabulary.encode(" world. More"))
    body = {
        "model": "policy",
        "prompt": "Hello",
        "max_tokens": 5,
        "stop": [". "],
        "logprobs": 1,
        "return_token_ids": True,
    }
    answer = (await post(policy, "completions", body)).json()
    (choice,) = answer["choices"]
    assert policy.requests[0].prompt.tokens.tolist() == RENDERER.vocabulary.encode("Hello")
    assert policy.requests[0].params.stop == (". ",)
    assert choice["text"] == " world"
    assert choice["token_ids"] == policy.tokens
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == " world. More"
    assert logprobs["text_offset"] == list(range(12))
    assert logprobs["token_logprobs"] == [-n / 8 for n in range(12)]


async def test_token_ids_in_several_prompts_and_choices() -> None:
    policy = Says([65, 66])
    body = {"model": "policy", "prompt": [[1, 2], [3]], "n": 2, "return_tokens_as_token_ids": True, "logprobs": 0}
    answer = (await post(policy, "completions", body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [request.prompt.tokens.tolist() for request in policy.requests] == [[1, 2], [3]]
    assert answer["choices"][0]["logprobs"]["tokens"] == ["token_id:65", "token_id:66"]
    assert answer["usage"]["prompt_tokens"] == 3


async def test_an_echo_scores_the_prompt() -> None:
    class Scores(Says):
        async def compute_logprobs(self, sequence: Any) -> Any:
            return np.array([np.nan, *[-float(token) for token in sequence.tokens[1:]]], np.float32)

    body = {"model": "policy", "prompt": [5, 6, 7], "max_tokens": 1, "echo": True, "logprobs": 1}
    answer = (await post(Scores([65]), "completions", body)).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -6.0, -7.0, 0.0]
    assert answer["choices"][0]["text"] == RENDERER.vocabulary.decode([5, 6, 7, 65])
    refused = await post(Says([65]), "completions", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "echo")


async def test_streamed_text_is_whole_characters() -> None:
    tokens = RENDERER.vocabulary.encode("aäb🙂 END")
    response = await post(
        Streams(tokens), "completions", {"model": "policy", "prompt": "x", "stream": True, "stop": "END"}
    )
    pieces = [choice["text"] for event in events(response) for choice in event["choices"]]
    assert "".join(pieces) == "aäb🙂 "
    assert "ä" in pieces


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": "hi"}, "messages", "must be a list, not str"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "user"}]}, "messages", "message 0, field 'content'"),
        ({"messages": [{"role": "pope", "content": "x"}]}, "messages", "'pope' is none of"),
        ({"temperature": "hot"}, "temperature", "must be a number, not 'hot'"),
        ({"temperature": -1}, "temperature", "between 0 and 10"),
        ({"max_tokens": 0}, "max_tokens", "between 1 and 4096"),
        ({"max_tokens": 5000}, "max_tokens", "between 1 and 4096"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"n": 99}, "n", "between 1 and 16"),
        ({"n": True}, "n", "whole number"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids", "list of token ids"),
        ({"top_logprobs": 5}, "top_logprobs", "not served"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not served"),
        ({"tool_choice": "required"}, "tool_choice", "cannot be forced"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "function.name"),
        ({"tools": ["x"]}, "tools[0]", "must be an object"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"temprature": 1}, "temprature", "not a field that this server knows"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]},
            "messages",
            "reads no files for a client",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, said: str, stream: bool) -> None:
    policy = Says(HELLO)
    body = {**ASK, "stream": True, **fields} if stream and "stream" not in fields else {**ASK, **fields}
    response = await post(policy, "chat/completions", body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert said in error["message"]
    assert not policy.requests


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "must be a string"),
        ([10**6], "token id 1000000; the vocabulary ends at"),
        ([[-1]], "token id -1"),
        ("", "it is empty"),
        ([[1]] * 17, "at most 16 at once"),
        ([{"a": 1}], "must be a string"),
    ],
)
async def test_a_prompt_that_is_none_is_refused(prompt: Any, said: str) -> None:
    response = await post(Says(HELLO), "completions", {"model": "policy", "prompt": prompt})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize("raw", [b"", b"[1]", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000])
async def test_a_request_that_is_no_object_is_refused(raw: bytes) -> None:
    async with client(Says(HELLO)) as http:
        response = await http.post("chat/completions", content=raw)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("the request ")


async def test_a_request_that_is_too_large_is_not_read_to_its_end() -> None:
    endpoint = Endpoint({"policy": ServedPolicy(Says(HELLO), RENDERER)}, api_key=None, limits=Limits(max_body=1000))
    chunks = iter([b" " * 600] * 5)
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await endpoint.application()(_scope("/v1/chat/completions"), receive, send)  # type: ignore[arg-type]
    assert statuses == [413]
    assert len(list(chunks)) == 3


async def test_a_prompt_that_fills_the_context_is_refused() -> None:
    length = RENDERER.generation_prompt([user("Hi")]).length
    response = await post(Says(HELLO), "chat/completions", ASK, max_context=length)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert (await post(Says(HELLO), "chat/completions", ASK, max_context=length + 1)).status_code == 200


async def test_models_are_listed_and_others_not_found() -> None:
    async with client(Says(HELLO), max_context=77) as http:
        (listed,) = (await http.get("models")).json()["data"]
        assert (listed["id"], listed["max_model_len"]) == ("policy", 77)
        response = await http.post("chat/completions", json={**ASK, "model": "gpt-9"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert (await http.get("nothing")).json()["error"]["message"] == "there is nothing at /v1/nothing"
        assert (await http.get("completions")).status_code == 405
        assert (await http.get("http://test/health")).json() == {"status": "ok", "requests": 0}


@pytest.mark.parametrize(("given", "status"), [(None, 401), ("wrong", 401), ("s3cret", 200), ("ключ", 401)])
async def test_a_key_is_asked_for_everywhere_but_for_health(given: str | None, status: int) -> None:
    async with client(Says(HELLO), key="s3cret") as http:
        headers = {} if given is None else {"Authorization": f"Bearer {given}".encode()}
        assert (await http.get("models", headers=headers)).status_code == status  # type: ignore[arg-type]
        assert (await http.post("chat/completions", json=ASK, headers=headers)).status_code == status  # type: ignore[arg-type]
        assert (await http.get("http://test/health")).status_code == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestRejected("prompt: too odd"), 400),
        (TransientError("busy"), 503),
        (BackendError("closed"), 500),
        (ZeroDivisionError("inside"), 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.filterwarnings("ignore")
async def test_what_goes_wrong_inside_is_told_without_its_insides(error: Exception, status: int, stream: bool) -> None:
    policy = Says(HELLO)
    policy.error = error
    response = await post(policy, "chat/completions", {**ASK, "stream": stream})
    if stream:  # the role was said before anything was sampled
        text = response.text
        assert '"error"' in text
        assert "[DONE]" not in text
    else:
        assert response.status_code == status
        text = response.json()["error"]["message"]
    assert ("inside" not in text) == isinstance(error, ZeroDivisionError) or str(error) in text


async def test_many_at_once_wait_and_too_many_are_sent_away() -> None:
    policy = Says(HELLO, seconds=1.0)
    statuses: list[int] = []
    async with client(policy, limits=Limits(concurrency=2, waiting=3)) as http:

        async def ask() -> None:
            response = await http.post("chat/completions", json=ASK)
            statuses.append(response.status_code)
            if response.status_code == 429:
                assert response.headers["retry-after"] == "1"

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
    assert sorted(statuses) == [200] * 5 + [429] * 3
    assert policy.peak == 2


async def test_a_request_has_its_time() -> None:
    response = await post(Says(HELLO, seconds=100.0), "chat/completions", ASK, limits=Limits(seconds=5.0))
    assert (response.status_code, response.json()["error"]["type"]) == (504, "server_error")


async def test_an_observer_hears_of_tokens_and_logprobs() -> None:
    heard: list[tuple[str, SampleRequest, Sequence[Completion]]] = []

    def observe(name: str, request: SampleRequest, completions: Sequence[Completion]) -> None:
        heard.append((name, request, completions))

    for stream in (False, True):
        await post(Says(HELLO), "chat/completions", {**ASK, "stream": stream}, observer=observe)
    assert [(name, request.prompt, c[0].tokens.tolist()) for name, request, c in heard] == [
        ("policy", RENDERER.generation_prompt([user("Hi")]), HELLO)
    ] * 2


async def test_a_system_message_is_the_renderers_business() -> None:
    policy = Says(HELLO)
    await chat(policy, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert policy.requests[0].prompt == RENDERER.generation_prompt([system("Be brief."), user("Hi")])


# ---- anything at all


async def test_what_json_cannot_say_is_refused() -> None:
    for raw, why in (
        (b'{"model": "policy", "max_tokens": NaN}', "NaN is no JSON value"),
        (b'{"model": "policy", "temperature": -Infinity}', "-Infinity is no JSON value"),
        (rb'{"model": "policy", "messages": [{"role": "user", "content": "\ud800"}]}', "surrogates not allowed"),
        (b'{"model": "policy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}', "not inf"),
        (b'{"messages": []}', "the request names no model; there is policy"),
    ):
        async with client(Says(HELLO)) as http:
            response = await http.post("chat/completions", content=raw)
        assert 400 <= response.status_code < 500
        assert why in response.json()["error"]["message"]


SCALARS = st.none() | st.booleans() | st.integers(-5, 50) | st.just(10**400) | st.floats() | st.text(max_size=4)
KEYS = st.sampled_from(["role", "content", "type", "text", "function", "name", "arguments", "parameters", "id", "url"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
SERVED = ServedPolicy(Says(HELLO), RENDERER, 1000)


@given(st.sampled_from(sorted(requests._CHAT)), VALUES, st.sampled_from(["", "tool_calls", "content", "name"]))
@example("stop", 5, "")
@example("tools", 5, "")
@example("max_tokens", 10**400, "")
@example("messages", 5, "tool_calls")
def test_any_value_of_any_field_is_taken_or_refused(field: str, value: Any, of_message: str) -> None:
    """Never an error of the server's."""
    message = {"role": "user", "content": "Hi", **({of_message: value} if of_message else {})}
    body = {"messages": [message], **({} if of_message else {field: value})}
    with contextlib.suppress(ApiError):
        asked = requests.chat(body, SERVED, Limits())
        requests.sample_request(requests.rendered(asked, SERVED), asked.asked, SERVED)
    text = {"prompt": "Hi", field: value} if field in requests._TEXT else {"prompt": value}
    with contextlib.suppress(ApiError):
        found = requests.text(text, SERVED, Limits())
        for prompt in found.prompts:
            requests.sample_request(prompt, found.asked, SERVED)
