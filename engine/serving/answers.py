"""Answers of the endpoint: choices, logprobs, usage, and the events of a stream."""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.backends.values import Completion, SampleRequest
from engine.rendering.messages import ToolCallPart
from engine.rendering.openai_format import to_openai
from engine.rendering.parsing import Delta, Event, PartEnd
from engine.rendering.renderer import Renderer
from engine.rendering.tools import dump_json
from engine.rendering.vocabulary import Vocabulary
from engine.serving.requests import Chat, Text
from engine.serving.served import ServedPolicy


def new_id(kind: str) -> str:
    """An id of an answer or of a call, as clients log it."""
    return f"{kind}-{secrets.token_hex(12)}"


def head(kind: str, answer_id: str, model: str) -> dict[str, Any]:
    """What every answer and every event begins with."""
    return {"id": answer_id, "object": kind, "created": int(time.time()), "model": model}


def usage(prompt_tokens: int, completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens read and written."""
    written = sum(len(completion.tokens) for completion in completions)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written}


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


# ---- chat


def chat_answer(
    chat: Chat, request: SampleRequest, completions: Sequence[Completion], served: ServedPolicy
) -> dict[str, Any]:
    """Choices and usage of a whole chat answer."""
    found: dict[str, Any] = {
        "choices": [_chat_choice(n, chat, completion, served) for n, completion in enumerate(completions)],
        "usage": usage(request.prompt.length, completions),
    }
    if chat.asked.token_ids:
        found["prompt_token_ids"] = request.prompt.tokens.tolist()
    return found


def _chat_choice(index: int, chat: Chat, completion: Completion, served: ServedPolicy) -> dict[str, Any]:
    after_tool = chat.messages[-1].role == "tool"
    parsed = served.renderer.parse(completion.tokens, tools=chat.tools, after_tool=after_tool)
    message = to_openai(parsed.message)
    content = message.get("content")
    message["content"] = cut_at(content, chat.asked.cut) if isinstance(content, str) else None
    for call in message.get("tool_calls", ()):
        call.setdefault(
            "id", new_id("call")
        )  # of its own in the whole conversation: results are paired with calls by it
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "finish_reason": "tool_calls" if message.get("tool_calls") else completion.stop_reason,
    }
    if chat.asked.logprobs:
        choice["logprobs"] = {"content": list(_token_entries(completion, served.renderer.vocabulary)), "refusal": None}
    if chat.asked.token_ids:
        choice["token_ids"] = completion.tokens.tolist()
    return choice


def _token_entries(completion: Completion, vocabulary: Vocabulary) -> Iterator[dict[str, Any]]:
    for token, logprob in zip(completion.tokens.tolist(), completion.logprobs.tolist(), strict=True):
        yield token_entry(token, logprob, vocabulary)


def token_entry(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    """A token in `logprobs.content`. `id` is our addition: text and bytes do not tell a control token from its name."""
    data = vocabulary.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "bytes": list(data),
        "logprob": logprob,
        "top_logprobs": [],
        "id": token,
    }


class Shown:
    """Text on its way to a client: nothing from a stop string on, and nothing that may yet become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._text = ""
        self._told = 0
        self._ended = False

    def add(self, text: str) -> str:
        """What may be shown now."""
        if self._ended:
            return ""
        self._text += text
        cut = cut_at(self._text, self._stops)
        self._ended = len(cut) < len(self._text)
        shown = cut[self._told : len(cut) - (0 if self._ended else _may_begin(cut, self._stops))]
        self._told += len(shown)
        return shown

    def last(self, whole: str | None = None) -> str:
        """What was held back, now that no more text comes. `whole`: all of the text, where its end became certain only now (a broken character)."""
        if whole is not None and whole.startswith(self._text):
            self._text = whole
        return cut_at(self._text, self._stops)[self._told :]


def _may_begin(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that could be the beginning of a stop string."""
    lengths = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return max(lengths, default=0)


class ChatStream:
    """The events of one choice of a streamed chat answer, as `choices` holds them."""

    def __init__(self, index: int, chat: Chat, renderer: Renderer) -> None:
        self._index = index
        self._asked = chat.asked
        self._vocabulary = renderer.vocabulary
        self._parser = renderer.stream_parser(tools=chat.tools, after_tool=chat.messages[-1].role == "tool")
        self._shown = Shown(chat.asked.cut)
        self._calls = 0

    def begin(self) -> dict[str, Any]:
        """The event that opens the choice."""
        return self._choice({"role": "assistant", "content": ""})

    def feed(self, token: int, logprob: float) -> Iterator[dict[str, Any]]:
        """Events that a token makes certain; what is said of the token itself goes with the last."""
        more: dict[str, Any] = {}
        if self._asked.logprobs:
            more["logprobs"] = {"content": [token_entry(token, logprob, self._vocabulary)]}
        if self._asked.token_ids:
            more["token_ids"] = [token]
        *first, last = [*self._deltas(self._parser.feed([token]))] or [{}]
        for delta in first:
            yield self._choice(delta)
        if last or more:
            yield self._choice(last, **more)

    def finish(self, completion: Completion) -> Iterator[dict[str, Any]]:
        """Events that only the end makes certain, and why it ended."""
        message = self._parser.finish().message
        if rest := self._shown.last(message.text):
            yield self._choice({"content": rest})
        for part in message.tool_calls[self._calls :]:
            yield self._choice(self._call(part))
        yield self._choice({}, finish_reason="tool_calls" if self._calls else completion.stop_reason)

    def _choice(self, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "finish_reason": None, **more}

    def _deltas(self, events: Sequence[Event]) -> Iterator[dict[str, Any]]:
        for event in events:
            match event:
                case Delta("text", text) if shown := self._shown.add(text):
                    yield {"content": shown}
                case Delta("thinking", text) if text:
                    yield {"reasoning_content": text}
                case PartEnd(ToolCallPart() as part):
                    yield self._call(part)

    def _call(self, part: ToolCallPart) -> dict[str, Any]:
        call = {
            "index": self._calls,
            "id": part.id or new_id("call"),
            "type": "function",
            "function": {"name": part.name, "arguments": dump_json(part.arguments)},
        }
        self._calls += 1
        return {"tool_calls": [call]}


class TextStream:
    """The text of one choice of a streamed completions answer, shown as soon as its characters are whole."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = Shown(stops)

    def feed(self, token: int) -> str:
        """What a token lets be shown."""
        return self._shown.add(self._decoder.decode(self._vocabulary.token_bytes(token)))

    def finish(self) -> str:
        """What only the end lets be shown."""
        return self._shown.add(self._decoder.decode(b"", final=True)) + self._shown.last()


# ---- text


def text_choice(
    index: int,
    text: Text,
    request: SampleRequest,
    completion: Completion,
    prompt_logprobs: Sequence[float | None] | None,
    served: ServedPolicy,
) -> dict[str, Any]:
    """A choice of a whole completions answer. `prompt_logprobs`: of the echoed prompt, None for its first token."""
    vocabulary = served.renderer.vocabulary
    written = vocabulary.decode(completion.tokens)
    choice: dict[str, Any] = {
        "index": index,
        "text": written if text.keep_stop else cut_at(written, text.asked.cut),
        "finish_reason": completion.stop_reason,
        "logprobs": None,
    }
    tokens, logprobs = completion.tokens.tolist(), completion.logprobs.tolist()
    if text.echo:
        choice["text"] = vocabulary.decode(request.prompt.tokens) + choice["text"]
        tokens, logprobs = request.prompt.tokens.tolist() + tokens, [*(prompt_logprobs or ()), *logprobs]
    if text.asked.logprobs:
        choice["logprobs"] = text_logprobs(tokens, logprobs, vocabulary, names_are_ids=text.names_are_ids)
    if text.asked.token_ids:
        choice["token_ids"] = completion.tokens.tolist()
        choice["prompt_token_ids"] = request.prompt.tokens.tolist()
    return choice


def text_logprobs(
    tokens: Sequence[int], logprobs: Sequence[float | None], vocabulary: Vocabulary, *, names_are_ids: bool
) -> dict[str, Any]:
    """The `logprobs` of the completions API: parallel lists; `text_offset` counts characters."""
    pieces = [vocabulary.token_bytes(token) for token in tokens]
    ends = np.cumsum([len(piece.decode("utf-8", "replace")) for piece in pieces])
    return {
        "tokens": [f"token_id:{token}" for token in tokens]
        if names_are_ids
        else [piece.decode("utf-8", "replace") for piece in pieces],
        "token_logprobs": list(logprobs),
        "top_logprobs": None,
        "text_offset": [0, *ends[:-1].tolist()] if pieces else [],
    }


# ---- events


def event(body: Mapping[str, Any] | str) -> bytes:
    """A server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)}\n\n".encode()


def json_bytes(body: Mapping[str, Any]) -> bytes:
    """The body of a plain JSON response."""
    return json.dumps(body, ensure_ascii=False).encode()


DONE = event("[DONE]")
