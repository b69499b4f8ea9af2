"""Prompts: what is asked, without an answer.

{"prompt": "..." or [messages]}      {"messages": [...]}: up to the last message that is not the assistant's
{"question" | "problem": "..."}      {"instruction": "...", "input": "..."}
"""

from __future__ import annotations

from engine.data.conversations import check_order
from engine.data.examples import Examples, OnBadRow, as_set
from engine.data.fields import messages, only_one, question, text
from engine.data.rows import Row, Rows
from engine.rendering import Message, user

Prompt = tuple[Message, ...]


def read_prompts(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Examples[Prompt]:
    """Rows as prompts, messages up to the answer; the module says in which forms. `on_bad_row` as for `read_conversations`."""
    return as_set(Examples(rows, prompt_of), on_bad_row)


def prompt_of(row: Row) -> Prompt:
    """A row as a prompt. Raises ValueError naming the field."""
    field = (
        only_one(row, ("prompt", "question", "problem", "instruction")) if row.get("messages") is None else "messages"
    )
    if field is None:
        raise ValueError(
            f"no prompt in the fields {', '.join(map(str, row)) or '(none)'}: wanted is one of prompt, messages, question, problem, instruction"
        )
    if field == "instruction":
        extra = text(row, "input", empty=True) if row.get("input") is not None else ""
        return (user("\n\n".join(part for part in (text(row, field), extra) if part.strip())),)
    if field != "messages":
        asked = question(row, field)
        check_order(asked)
        return asked
    said = messages(row, field)
    check_order(said)
    last = max((index for index, message in enumerate(said) if message.role != "assistant"), default=-1)
    if last < 0 or said[last].role not in ("user", "tool"):
        raise ValueError("field 'messages': nobody asks anything: there is no user message")
    return said[: last + 1]
