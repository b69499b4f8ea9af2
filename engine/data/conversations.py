"""Conversations to train on.

    {"messages": [{"role": "user", "content": ...}, ...], "tools": [...]}     OpenAI's form; tools may be a JSON string
    {"conversations": [{"from": "human", "value": ...}, ...]}                 ShareGPT's, with "system" and "tools" beside it perhaps
    {"prompt": ..., "response" | "completion": ...}                           strings, or lists of messages
    {"instruction": ..., "input" | "context": ..., "output" | "response": ...}

`messages` goes before the others; what else fits two forms is ambiguous, and an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from engine.data.examples import Examples, OnBadRow, as_set
from engine.data.fields import messages, messages_of, only_one, present, question, text, wrong
from engine.data.rows import Row, Rows
from engine.rendering import Message, ToolSpec, assistant, system, user

ANSWERS = ("response", "completion")
SPEAKERS: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@attrs.frozen
class Conversation:
    """Messages in order, and the tools declared for them."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()


def read_conversations(
    rows: Rows, *, any_order: bool = False, on_bad_row: OnBadRow = "error"
) -> Examples[Conversation]:
    """Rows as conversations; the module says in which forms.

    Args:
        any_order: take messages in any order, two of a role in a row say. Otherwise it must be one that a chat can have: see `check_order`.
        on_bad_row: "error": a row that does not fit raises BadRow when it is read. "skip": every row is read once now, and those that do not fit are
            left out and counted (`Examples.skipped`).
    """

    def read(row: Row) -> Conversation:
        conversation = conversation_of(row)
        if not any_order:
            check_order(conversation.messages)
        return conversation

    return as_set(Examples(rows, read), on_bad_row)


def conversation_of(row: Row) -> Conversation:
    """A row as a conversation. Raises ValueError naming the field."""
    fields = present(row)
    if "messages" in fields:
        return Conversation(messages(row, "messages"), _tools(row))
    forms = [form for form, fits in _forms(row, fields).items() if fits]
    if not forms:
        raise ValueError(
            f"no conversation in the fields {', '.join(map(str, row)) or '(none)'}: wanted are messages, conversations, prompt and response "
            "(or completion), or instruction and output"
        )
    if len(forms) > 1:
        raise ValueError(f"fields of two forms, {' and '.join(forms)}: it is ambiguous which one is meant")
    if forms[0] == "conversations":
        return Conversation(_sharegpt(row), _tools(row))
    return Conversation(_pair(row) if forms[0] == "prompt" else _instruction(row), _tools(row))


def _forms(row: Row, fields: set[str]) -> dict[str, bool]:
    return {
        "conversations": "conversations" in fields,
        "prompt": "prompt" in fields and only_one(row, ANSWERS) is not None,
        "instruction": "instruction" in fields and only_one(row, ("output", "response")) is not None,
    }


def _pair(row: Row) -> tuple[Message, ...]:
    field = only_one(row, ANSWERS) or ANSWERS[0]
    answer = row[field]
    said = (assistant(text(row, field)),) if isinstance(answer, str) else messages_of(answer, field)
    return (*question(row, "prompt"), *said)


def _instruction(row: Row) -> tuple[Message, ...]:
    said = only_one(row, ("output", "response")) or "output"
    given = only_one(row, ("input", "context"))
    extra = text(row, given, empty=True) if given is not None else ""
    instruction = text(row, "instruction")
    asked = user(f"{instruction}\n\n{extra}" if extra.strip() else instruction)
    before = (system(text(row, "system")),) if row.get("system") else ()
    return (*before, asked, assistant(text(row, said)))


def _sharegpt(row: Row) -> tuple[Message, ...]:
    turns = row["conversations"]
    if isinstance(turns, (str, Mapping)) or not isinstance(turns, Sequence):
        raise wrong("conversations", "a list of turns", turns)
    if turns and isinstance(turns[0], Mapping) and turns[0].get("role") is not None:
        return messages_of(turns, "conversations")
    dictionaries: list[dict[str, Any]] = []
    if row.get("system"):
        dictionaries.append({"role": "system", "content": text(row, "system")})
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, Mapping):
            raise wrong(where, "an object with 'from' and 'value'", turn)
        speaker, said = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise ValueError(f"field '{where}.from': {speaker!r} is none of {', '.join(SPEAKERS)}")
        if not isinstance(said, str):
            raise wrong(f"{where}.value", "a string", said)
        dictionaries.append({"role": SPEAKERS[speaker], "content": said})
    return messages_of(dictionaries, "conversations")


def _tools(row: Row) -> tuple[ToolSpec, ...]:
    tools = row.get("tools")
    if tools in (None, "", []):
        return ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"field 'tools': not JSON ({error})") from error
    if not isinstance(tools, list):
        raise wrong("tools", "a list of tools", tools)
    try:
        return tuple(ToolSpec.from_openai(tool) for tool in tools)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"field 'tools': {error}") from error


def check_order(said: Sequence[Message]) -> None:
    """Raises ValueError where roles come in an order that no chat has.

    System and developer messages stand at the beginning, then the user speaks, the assistant answers; what tools say follows the assistant, and either of
    the two goes on. Nobody but tools speaks twice in a row.
    """
    follows = {
        "system": ("", "system", "developer"),
        "developer": ("", "system", "developer"),
        "user": ("", "system", "developer", "assistant", "tool"),
        "assistant": ("user", "tool"),
        "tool": ("assistant", "tool"),
    }
    before = ""
    for index, message in enumerate(said):
        if before not in follows[message.role]:
            place = f"follows a message of the role {before!r}" if before else "stands first"
            raise ValueError(f"roles out of order: message {index}, of the role {message.role!r}, {place}")
        before = message.role
