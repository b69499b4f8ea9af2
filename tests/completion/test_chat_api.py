"""The chat completer: what it sends, what it makes of answers of several servers' kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.backends import RequestRejected, SamplingParams, TransientError
from engine.completion import Reply, chat_api
from engine.completion.chat_api.completer import Dialect
from engine.rendering import (
    Delta,
    ImagePart,
    Message,
    TextPart,
    ToolCallPart,
    ToolSpec,
    UnparsedToolCallPart,
    assistant,
    system,
    tool_result,
    user,
)

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (64).to_bytes(4, "big") * 2
PARAMS = SamplingParams(max_tokens=20, temperature=0.5, top_p=0.9, top_k=5, stop=("END", 7))
ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})


class Server:
    """Answers every request alike, and keeps what it was sent."""

    def __init__(self, answer: Mapping[str, Any] | bytes) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.headers.append(request.headers)
        if isinstance(self.answer, bytes):
            return httpx.Response(200, content=self.answer)
        return httpx.Response(200, json=self.answer)


def choice(message: Mapping[str, Any], finish: str = "stop") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4},
    }


async def complete(server: Server, messages: list[Message], dialect: Dialect | None = None, **more: Any) -> Reply:
    transport = httpx.MockTransport(server.handle)
    async with chat_api.open(
        "m", base_url="http://server/v1", api_key="k", dialect=dialect, transport=transport, attempts=1
    ) as completer:
        return await completer.complete(messages, params=PARAMS, seed=2**40 + 3, **more)


async def test_a_conversation_goes_out_in_the_apis_words() -> None:
    server = Server(choice({"role": "assistant", "content": "5"}))
    talk = [
        system("Be brief."),
        user("2 + 3?", trainable=True),
        assistant(thinking="hm", tool_calls=[ToolCallPart("add", {"a": 2}, "call_1")]),
        tool_result("5", name="add", id="call_1"),
    ]
    reply = await complete(server, talk, tools=[ADD])
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 3?"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
                ],
            },
            {"role": "tool", "content": "5", "name": "add", "tool_call_id": "call_1"},
        ],
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "stop_token_ids": [7],
        "seed": 3,
        "tools": [ADD.to_openai()],
    }
    assert server.headers[0]["authorization"] == "Bearer k"
    assert reply == Reply(assistant("5"), "stop", 9, 4, True)


async def test_servers_differ_in_names_and_in_what_they_take() -> None:
    server = Server(choice({"content": "x"}))
    await complete(server, [user("?")], Dialect("max_completion_tokens", seed=False, extra={"service_tier": "flex"}))
    (body,) = server.bodies
    assert (body["max_completion_tokens"], body["service_tier"]) == (20, "flex")
    assert not {"max_tokens", "seed"} & body.keys()


async def test_images_go_out_as_data_or_by_their_address(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(PNG)
    server = Server(choice({"content": "a square"}))
    parts = [TextPart("What?"), ImagePart(PNG), ImagePart(str(file)), ImagePart("https://example.org/x.png", 8, 8)]
    await complete(server, [user(parts)])
    content = server.bodies[0]["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content[1:]]
    assert content[0] == {"type": "text", "text": "What?"}
    assert urls[0] == urls[1]
    assert urls[0].startswith("data:image/png;base64,iVBORw0KGgo")
    assert urls[2] == "https://example.org/x.png"


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "cut"}, "length", Reply(assistant("cut"), "length", 9, 4, False)),
        ({"content": None, "reasoning": "so"}, "stop", Reply(assistant(thinking="so"), "stop", 9, 4, True)),
        ({"content": [{"type": "text", "text": "in parts"}]}, "stop", Reply(assistant("in parts"), "stop", 9, 4, True)),
        ({"content": "no"}, "content_filter", Reply(assistant("no"), "stop", 9, 4, False)),
        (
            {"content": "", "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
            "tool_calls",
            Reply(assistant(tool_calls=[ToolCallPart("add", {"a": 1}, "c")]), "stop", 9, 4, True),
        ),
    ],
)
async def test_answers_of_every_kind_are_read(message: dict[str, Any], finish: str, expected: Reply) -> None:
    assert await complete(Server(choice(message, finish)), [user("?")]) == expected


async def test_a_call_that_is_no_json_is_kept_as_what_could_not_be_parsed() -> None:
    broken = {"tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"a": '}}]}
    reply = await complete(Server(choice(broken, "tool_calls")), [user("?")])
    (part,) = reply.message.content
    assert isinstance(part, UnparsedToolCallPart)
    assert part.text == '{"a": '
    assert not reply.well_formed


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"text": "of another API"}]}, {"choices": None}])
async def test_an_answer_without_a_message_may_pass(answer: dict[str, Any]) -> None:
    with pytest.raises(TransientError, match="holds no message"):
        await complete(Server(answer), [user("?")])


async def test_nothing_is_asked_about_nothing() -> None:
    with pytest.raises(RequestRejected, match="messages: there are none"):
        await complete(Server({}), [])


def events(*bodies: Mapping[str, Any]) -> bytes:
    return b"".join(f"data: {json.dumps(body)}\n\n".encode() for body in bodies) + b"data: [DONE]\n\n"


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


async def stream(answer: bytes) -> tuple[Reply, list[Delta], dict[str, Any]]:
    server, said = Server(answer), list[Delta]()
    async with chat_api.open(
        "m", base_url="http://server/v1", transport=httpx.MockTransport(server.handle)
    ) as completer:
        reply = await completer.stream([user("?")], said.append, params=PARAMS, seed=0)
    return reply, said, server.bodies[0]


async def test_a_streamed_answer_is_put_together() -> None:
    reply, said, body = await stream(
        events(
            delta(role="assistant", content=""),
            delta(reasoning_content="let me "),
            delta(reasoning_content="add"),
            delta(content="It is "),
            delta(content="5"),
            delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a"'}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
            delta("tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
        )
    )
    assert said == [Delta("thinking", "let me "), Delta("thinking", "add"), Delta("text", "It is "), Delta("text", "5")]
    assert reply == Reply(
        assistant("It is 5", thinking="let me add", tool_calls=[ToolCallPart("add", {"a": 1}, "c")]), "stop", 9, 4, True
    )
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


async def test_a_stream_that_ends_before_its_answer_is_no_answer() -> None:
    with pytest.raises(TransientError, match="ended before the answer did"):
        await stream(events(delta(content="It is ")))
