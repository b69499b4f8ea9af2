"""Messages as the chat API of OpenAI's kind writes them, and answers as it gives them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.rendering.messages import ImagePart, Message, TextPart, ThinkingPart, ToolResultPart
from engine.rendering.openai_format import to_openai
from engine.rendering.parsing import Delta
from engine.rendering.tools import call_with_arguments

_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


def written(message: Message) -> dict[str, Any]:
    """A message as the API takes it: images as data URLs (a local file is read), nothing that only training knows."""
    found = to_openai(message)
    found.pop("trainable", None)
    if message.images:
        found["content"] = [
            {"type": "image_url", "image_url": {"url": _url(part)}}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part.text}
            for part in message.content
            if isinstance(part, ImagePart | TextPart | ToolResultPart)
        ]
    return found


def _url(image: ImagePart) -> str:
    source = image.source
    if isinstance(source, str):
        if source.startswith(("http://", "https://", "data:")):
            return source
        source = Path(source).read_bytes()
    kind = next((kind for magic, kind in _MAGIC.items() if source.startswith(magic)), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(source).decode('ascii')}"


def has_local_images(messages: Sequence[Message]) -> bool:
    """Whether `written` reads files, which must not happen on the event loop."""
    sources = [image.source for message in messages for image in message.images]
    return any(isinstance(source, str) and not source.startswith(("http", "data:")) for source in sources)


def read(answer: Mapping[str, Any]) -> Message:
    """The message in a choice. A call whose arguments are not JSON stays in it as what could not be parsed."""
    thinking = next(
        (answer[name] for name in ("reasoning_content", "reasoning") if isinstance(answer.get(name), str)), None
    )
    parts: list[Any] = [ThinkingPart(thinking)] if thinking else []
    if content := _text(answer.get("content")):
        parts.append(TextPart(content))
    for call in answer.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = function.get("arguments") or "{}"
            parts.append(
                call_with_arguments(str(function.get("name") or ""), arguments, str(arguments), call.get("id"))
            )
    return Message("assistant", parts)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


class Gathered:
    """A streamed answer, put together."""

    def __init__(self) -> None:
        self.finish: object = None
        self._text: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._calls: dict[int, dict[str, str]] = {}

    def add(self, choice: Mapping[str, Any]) -> list[Delta]:
        """Takes a choice of one event; gives the reasoning and the text that it adds."""
        delta = choice.get("delta") or {}
        self.finish = choice.get("finish_reason") or self.finish
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        content = delta.get("content") or ""
        self._text["reasoning_content"].append(thinking)
        self._text["content"].append(content)
        for call in delta.get("tool_calls") or ():
            kept = self._calls.setdefault(int(call.get("index", 0)), {"id": "", "name": "", "arguments": ""})
            function = call.get("function") or {}
            kept["id"] = call.get("id") or kept["id"]
            kept["name"] += function.get("name") or ""
            kept["arguments"] += function.get("arguments") or ""
        said = (("thinking", thinking), ("text", content))
        return [Delta(kind, text) for kind, text in said if text]  # type: ignore[arg-type]

    def message(self) -> Message:
        """The whole answer."""
        calls = [
            {"id": call["id"] or None, "function": {"name": call["name"], "arguments": call["arguments"]}}
            for _, call in sorted(self._calls.items())
        ]
        return read({name: "".join(texts) for name, texts in self._text.items()} | {"tool_calls": calls})
