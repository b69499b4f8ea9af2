"""A row's fields: which there are, and that they are what they should be. Messages name the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.data.rows import Row
from engine.rendering import Message, from_openai, user

_KINDS = {str: "a string", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def present(row: Row) -> set[str]:
    """Fields with a value: tables fill what a row does not have with null."""
    return {name for name, value in row.items() if value is not None}


def wrong(field: str, wanted: str, value: Any) -> ValueError:
    """The error for a value of another kind."""
    return ValueError(f"field {field!r}: {wanted} is wanted, not {kind_of(value)}")


def missing(row: Row, field: str) -> ValueError:
    """The error for a field that is not there."""
    return ValueError(f"field {field!r} is missing; there are {', '.join(map(str, row)) or 'none'}")


def text(row: Row, field: str, *, empty: bool = False) -> str:
    """A string; an empty one only where that is allowed."""
    if field not in row:
        raise missing(row, field)
    value = row[field]
    if not isinstance(value, str):
        raise wrong(field, "a string", value)
    if not empty and not value.strip():
        raise ValueError(f"field {field!r} is empty")
    return value


def number(row: Row, field: str) -> float:
    """A number."""
    if field not in row:
        raise missing(row, field)
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong(field, "a number", value)
    return value


def messages(row: Row, field: str) -> tuple[Message, ...]:
    """A list of OpenAI-style messages, at least one."""
    if field not in row:
        raise missing(row, field)
    return messages_of(row[field], field)


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """A field's value as messages."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise wrong(field, "a list of messages", value)
    if not value:
        raise ValueError(f"field {field!r} is an empty list of messages")
    try:
        return tuple(from_openai(value))
    except ValueError as error:
        raise ValueError(f"field {field!r}: {error}") from error


def question(row: Row, field: str) -> tuple[Message, ...]:
    """What is asked: messages, or a string that becomes the user's."""
    if field in row and isinstance(row[field], str):
        return (user(text(row, field)),)
    return messages(row, field)


def only_one(row: Row, names: Sequence[str]) -> str | None:
    """The one of these fields that has a value; None: none has. Two are ambiguous, which is an error."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise ValueError(
            f"fields {found[0]!r} and {found[1]!r} both have a value, so it is ambiguous which one is meant"
        )
    return found[0] if found else None
