"""What a tool gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class ToolResult:
    """A tool's answer, where text alone does not say it all."""

    text: str
    final: bool = False
    """The episode ends here, and `text` is its final answer: for a tool called "submit", say."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    """Added up over the episode, and reported with it."""


class ToolError(Exception):
    """Raised by a tool: what it could not do, in words for the model, which gets them as the tool's result."""


class ToolUnavailable(Exception):
    """Raised by a tool: the world is broken (a server is down), and nothing the model does can help. The episode fails, and what that means for its group is
    the failure policy's to say; nobody is graded for it."""


def as_result(value: Any) -> ToolResult:
    """What a tool returned, as text: a string as it is, nothing as "done", all else as JSON. Raises ToolError for what JSON cannot say."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(value)
    if value is None:
        return ToolResult("done")
    try:
        return ToolResult(json.dumps(value, ensure_ascii=False, default=_plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"the tool's result cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return attrs.asdict(value)
    if hasattr(value, "__dataclass_fields__"):
        import dataclasses

        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is none of JSON's values")
