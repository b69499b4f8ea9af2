"""What people and models say to each other, before it becomes tokens.

A `Message` is a role and a tuple of parts. Text, images and thinking are what they are called; a tool call and a tool result point at
each other through the call's id. The same values come out of parsing a model's tokens, so that a parsed answer can be put back
into a conversation as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import attrs

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


class RenderError(ValueError):
    """A conversation that a renderer cannot write exactly: names the message and what is wrong with it."""


@attrs.frozen
class TextPart:
    """Plain text. Control strings in it (`<|im_end|>`) stay text."""

    text: str


@attrs.frozen
class ImagePart:
    """An image by reference: nothing is fetched or decoded here."""

    source: bytes | str
    """The encoded image itself, or a path or URL to it."""
    width: int | None = None
    """Pixels. Needed for URLs; for bytes and paths it is read from the file's header when absent."""
    height: int | None = None


@attrs.frozen
class ThinkingPart:
    """Reasoning that precedes an answer."""

    text: str


@attrs.frozen
class ToolCallPart:
    """A call of a tool by the assistant."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    """A JSON object, in the order it was written."""
    id: str | None = None
    """What a result answers to. None where the model family writes no ids."""


@attrs.frozen
class UnparsedToolCallPart:
    """What the model wrote where a tool call was expected, and why it is none."""

    text: str
    error: str


@attrs.frozen
class ToolResultPart:
    """What a tool answered."""

    text: str
    name: str | None = None
    """The tool's name. Some families write it; a renderer then finds it through `id` when it is absent."""
    id: str | None = None


Part = TextPart | ImagePart | ThinkingPart | ToolCallPart | UnparsedToolCallPart | ToolResultPart


def _as_parts(content: Any) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),) if content else ()
    if isinstance(content, get_args(Part)):
        return (content,)
    parts = tuple(content)
    for part in parts:
        if not isinstance(part, get_args(Part)):
            raise TypeError(f"a message is made of text and parts, not of {type(part).__name__}")
    return parts


_ALLOWED: Mapping[str, tuple[type, ...]] = {
    "system": (TextPart, ImagePart),
    "developer": (TextPart, ImagePart),
    "user": (TextPart, ImagePart),
    "assistant": (TextPart, ImagePart, ThinkingPart, ToolCallPart, UnparsedToolCallPart),
    "tool": (ToolResultPart, TextPart, ImagePart),
}


@attrs.frozen
class Message:
    """One message of a conversation."""

    role: Role
    content: tuple[Part, ...] = attrs.field(default=(), converter=_as_parts)
    """Parts in order. A string is taken as one text part."""
    trainable: bool | None = None
    """Whether the message is trained on; said for every message with `TrainOnWhat.CUSTOMIZED`, and otherwise for none."""

    def __attrs_post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"unknown role {self.role!r}: one of {', '.join(ROLES)}")
        for part in self.content:
            if not isinstance(part, _ALLOWED[self.role]):
                raise ValueError(f"a message of role {self.role!r} cannot hold a {type(part).__name__}")

    @property
    def text(self) -> str:
        """All text, tool results included, joined without anything in between."""
        return "".join([part.text for part in self.content if isinstance(part, (TextPart, ToolResultPart))])

    @property
    def thinking(self) -> str | None:
        """All reasoning joined; None where there is no thinking part (an empty one is the empty string)."""
        found = [part.text for part in self.content if isinstance(part, ThinkingPart)]
        return "".join(found) if found else None

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        """The calls, in order."""
        return tuple(part for part in self.content if isinstance(part, ToolCallPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images, in order."""
        return tuple(part for part in self.content if isinstance(part, ImagePart))


def system(content: str | Iterable[Part], **fields: Any) -> Message:
    """A system message."""
    return Message("system", content, **fields)


def user(content: str | Iterable[Part], **fields: Any) -> Message:
    """A user's message."""
    return Message("user", content, **fields)


def assistant(
    content: str | Iterable[Part] = "",
    *,
    thinking: str | None = None,
    tool_calls: Iterable[ToolCallPart] = (),
    **fields: Any,
) -> Message:
    """An assistant's message: reasoning first, then content, then calls."""
    before = () if thinking is None else (ThinkingPart(thinking),)
    return Message("assistant", (*before, *_as_parts(content), *tool_calls), **fields)


def tool_result(text: str, *, name: str | None = None, id: str | None = None, **fields: Any) -> Message:  # noqa: A002
    """A tool's answer."""
    return Message("tool", (ToolResultPart(text, name, id),), **fields)
