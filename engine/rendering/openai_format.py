"""Messages to and from OpenAI-style dictionaries, as data sets and chat APIs have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import cattrs

from engine.rendering.messages import (
    ROLES,
    ImagePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    UnparsedToolCallPart,
)
from engine.rendering.tools import dump_json, load_json


class MalformedMessage(ValueError):
    """A dictionary that is no message: names the message and the field."""


@attrs.frozen
class _Function:
    name: str
    arguments: str | dict[str, Any] = "{}"


@attrs.frozen
class _ToolCall:
    function: _Function
    id: str | None = None
    type: str = "function"


@attrs.frozen
class _Dictionary:
    """The fields that are read. Others are refused, so that nothing is lost unseen."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    trainable: bool | None = None


def _strict_string(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string is wanted, not {type(value).__name__}")
    return value


def _string_or(kind: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if value is None or isinstance(value, (str, kind)):
            return value
        raise TypeError(f"a string or a {kind.__name__} is wanted, not {type(value).__name__}")

    return structure


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(str, _strict_string)
_converter.register_structure_hook(str | list[dict[str, Any]] | None, _string_or(list))
_converter.register_structure_hook(str | dict[str, Any], _string_or(dict))


def from_openai(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages from dictionaries.

    Content is a string, or a list of `{"type": "text" | "thinking" | "image" | "image_url", ...}`. Reasoning is taken from
    `reasoning_content`, `reasoning` or `thinking`. Raises MalformedMessage naming the message's index and the field.
    """
    if isinstance(messages, (str, bytes, Mapping)):
        raise MalformedMessage(f"a list of messages is wanted, not {type(messages).__name__}")
    return [_from_one(index, dictionary) for index, dictionary in enumerate(messages)]


def _from_one(index: int, dictionary: Mapping[str, Any]) -> Message:
    if not isinstance(dictionary, Mapping):
        raise MalformedMessage(f"message {index}: a mapping is wanted, not {type(dictionary).__name__}")
    known = {field.name for field in attrs.fields(_Dictionary)}
    extra = [key for key, value in dictionary.items() if key not in known and value is not None]
    if extra:
        raise MalformedMessage(f"message {index}: unknown field {extra[0]!r}; known are {', '.join(sorted(known))}")
    given = dictionary.get("tool_calls") or ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise MalformedMessage(f"message {index}, field 'tool_calls': a list is wanted, not {type(given).__name__}")
    calls = [{k: v for k, v in call.items() if k != "index"} if isinstance(call, Mapping) else call for call in given]
    try:
        read = _converter.structure(
            {**{k: v for k, v in dictionary.items() if k in known}, "tool_calls": calls}, _Dictionary
        )
    except Exception as error:
        details = "; ".join(cattrs.transform_error(error, path=f"message {index}"))
        raise MalformedMessage(details) from error
    if read.role not in ROLES:
        raise MalformedMessage(f"message {index}, field 'role': {read.role!r} is none of {', '.join(ROLES)}")
    parts = _parts(index, read)
    try:
        return Message(read.role, parts, read.trainable)  # type: ignore[arg-type]
    except ValueError as error:
        raise MalformedMessage(f"message {index}: {error}") from error


def _parts(index: int, read: _Dictionary) -> list[Part]:
    thinking = next(
        (text for text in (read.reasoning_content, read.reasoning, read.thinking) if text is not None), None
    )
    parts: list[Part] = [] if thinking is None else [ThinkingPart(thinking)]
    if isinstance(read.content, str):
        if read.role == "tool":
            return [ToolResultPart(read.content, read.name, read.tool_call_id)]
        if read.content:
            parts.append(TextPart(read.content))
    elif read.content is not None:
        said = [_content_part(index, n, item) for n, item in enumerate(read.content)]
        if read.role == "tool":
            images: list[Part] = [part for part in said if isinstance(part, ImagePart)]
            text = "".join([part.text for part in said if isinstance(part, TextPart)])
            return [ToolResultPart(text, read.name, read.tool_call_id), *images]
        parts.extend(said)
    elif read.role != "assistant":  # an assistant may only think or call
        raise MalformedMessage(f"message {index}, field 'content': a message of the role {read.role!r} has content")
    parts.extend(_call(index, n, call) for n, call in enumerate(read.tool_calls or ()))
    return parts


def _content_part(index: int, n: int, item: Any) -> Part:
    where = f"message {index}, field 'content[{n}]'"
    if not isinstance(item, Mapping):
        raise MalformedMessage(f"{where}: a mapping is wanted, not {type(item).__name__}")
    match item:
        case {"type": "text", "text": str(text)}:
            return TextPart(text)
        case {"type": "thinking", "thinking": str(text)}:
            return ThinkingPart(text)
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "image_url", "image_url": str(url)}:
            return ImagePart(url, item.get("width"), item.get("height"))
        case {"type": "image", "image": (str() | bytes()) as source}:
            return ImagePart(source, item.get("width"), item.get("height"))
    raise MalformedMessage(
        f"{where}: type {item.get('type')!r} with the fields {', '.join(map(str, item))} is not known"
    )


def _call(index: int, n: int, call: _ToolCall) -> ToolCallPart:
    where = f"message {index}, field 'tool_calls[{n}].function.arguments'"
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments or "{}")
        except ValueError as error:
            raise MalformedMessage(f"{where}: not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise MalformedMessage(f"{where}: a JSON object is wanted, not {type(arguments).__name__}")
    return ToolCallPart(call.function.name, arguments, call.id)


def to_openai(message: Message) -> dict[str, Any]:
    """The dictionary of a message; `from_openai` gives the message back, but for calls that could not be parsed, which become text."""
    found: dict[str, Any] = {"role": message.role}
    if message.role == "tool":
        result = next(
            (part for part in message.content if isinstance(part, ToolResultPart)), ToolResultPart(message.text)
        )
        found["tool_call_id"], found["name"] = result.id, result.name
    if message.thinking is not None:
        found["reasoning_content"] = message.thinking
    found["content"] = _content(message)
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dump_json(call.arguments)}}
            for call in message.tool_calls
        ]
        for call in found["tool_calls"]:
            if call["id"] is None:
                del call["id"]
    if message.trainable is not None:
        found["trainable"] = message.trainable
    return {key: value for key, value in found.items() if value is not None}


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return "".join(
            [
                part.text
                for part in message.content
                if isinstance(part, (TextPart, ToolResultPart, UnparsedToolCallPart))
            ]
        )
    items: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, ImagePart):
            size = {"width": part.width, "height": part.height}
            items.append(
                {"type": "image", "image": part.source}
                | {key: value for key, value in size.items() if value is not None}
            )
        elif isinstance(part, (TextPart, ToolResultPart)):
            items.append({"type": "text", "text": part.text})
    return items
