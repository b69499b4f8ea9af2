"""Comparisons: two answers to one prompt, and which is better.

    one's own       {"prompt": "..." or [messages], "chosen": "..." or [messages], "rejected": ...}; `messages` may stand for `prompt`
    ultrafeedback   chosen and rejected are whole conversations: what they share is the prompt
    hh              chosen and rejected are texts of "\\n\\nHuman: ...\\n\\nAssistant: ..."
    helpsteer2      two rows that follow one another have the same prompt; the one with the higher helpfulness is chosen
    helpsteer3      {"context": [messages], "response1", "response2", "overall_preference": -3 (the first is much better) ... 3}

Answers that are equal, or equally good, are no comparison: such a row does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from engine.data.conversations import check_order
from engine.data.errors import DataError
from engine.data.examples import Examples, OnBadRow, as_set
from engine.data.fields import messages, messages_of, missing, number, question, text
from engine.data.rows import Row, Rows
from engine.rendering import Message, assistant, user

Messages = tuple[Message, ...]
_TURN = re.compile(r"\n\n(Human|Assistant):")


@attrs.frozen
class Comparison:
    """A prompt and two answers to it; each answer is what follows the prompt, in most data one message."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    strength: float = 1.0
    """By how much the chosen one is better, in the data's own unit; 1 where it does not say."""

    def __attrs_post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError("the chosen and the rejected answer are the same, so there is nothing to compare")
        for which, answer in (("chosen", self.chosen), ("rejected", self.rejected)):
            try:
                check_order((*self.prompt, *answer))
            except ValueError as error:
                raise ValueError(f"field {which!r}: {error}") from error
            if not answer or answer[-1].role != "assistant":
                raise ValueError(f"field {which!r}: it does not end with the assistant's answer")


def read_comparisons(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Examples[Comparison]:
    """Rows as comparisons: by the schema of `rows` where it is known, otherwise by their fields. `on_bad_row` as for `read_conversations`.

    The public sets hold rows that compare nothing (equal answers, ties): `on_bad_row="skip"` counts them.
    """
    if rows.schema == "helpsteer2":
        rows = attrs.evolve(rows, table=_Neighbours(rows), positions_V=None, required=())
    return as_set(Examples(rows, _SCHEMAS.get(rows.schema or "", comparison_of)), on_bad_row)


def comparison_of(row: Row) -> Comparison:
    """A row as a comparison, by its fields. Raises ValueError naming the field."""
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            raise missing(row, field)
    chosen, rejected = row["chosen"], row["rejected"]
    asked = "prompt" if row.get("prompt") is not None else "messages"
    if not isinstance(chosen, str) and not isinstance(rejected, str):
        both = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        shared = _shared(*both)
        if shared:
            _check_prompt(row, both[0][:shared])
            return Comparison(both[0][:shared], both[0][shared:], both[1][shared:])
        if all(said and said[0].role != "assistant" for said in both):
            raise ValueError(
                "fields 'chosen' and 'rejected' begin with different messages: they answer different prompts"
            )
    elif row.get(asked) is None and isinstance(chosen, str) and _TURN.match(chosen):
        return _hh(row)
    if row.get(asked) is None:
        raise missing(row, "prompt")
    return Comparison(question(row, asked), _answer(row, "chosen"), _answer(row, "rejected"))


def _check_prompt(row: Row, shared: Messages) -> None:
    """Raises ValueError where there is a prompt beside two conversations, and it is not what they answer."""
    if not row.get("prompt"):
        return
    asked = question(row, "prompt")[-1].text.strip()
    if asked not in {message.text.strip() for message in shared}:
        raise ValueError(
            "field 'prompt': it is not what 'chosen' and 'rejected' answer, which begin with another message"
        )


def _answer(row: Row, field: str) -> Messages:
    if isinstance(row.get(field), str):
        return (assistant(text(row, field)),)
    return messages(row, field)


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages two conversations begin with alike; an answer is left to each."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _hh(row: Row) -> Comparison:
    chosen, rejected = _dialogue(row, "chosen"), _dialogue(row, "rejected")
    shared = _shared(chosen, rejected)
    if not shared:
        raise ValueError("fields 'chosen' and 'rejected' share no prompt")
    return Comparison(chosen[:shared], chosen[shared:], rejected[shared:])


def _dialogue(row: Row, field: str) -> Messages:
    """`\\n\\nHuman: Hello\\n\\nAssistant: Hi` as messages."""
    written = text(row, field)
    pieces = _TURN.split(written)
    if len(pieces) < 3 or pieces[0].strip():
        raise ValueError(f"field {field!r}: a dialogue of '\\n\\nHuman:' and '\\n\\nAssistant:' is wanted")
    said = zip(pieces[1::2], pieces[2::2], strict=True)
    return tuple((user if speaker == "Human" else assistant)(words.strip()) for speaker, words in said)


def _helpsteer3(row: Row) -> Comparison:
    context = messages(row, "context")
    answers = (assistant(text(row, "response1")),), (assistant(text(row, "response2")),)
    preference = number(row, "overall_preference")
    if not preference:
        raise ValueError("field 'overall_preference': 0, both answers are equally good")
    chosen, rejected = answers if preference < 0 else answers[::-1]
    return Comparison(context, chosen, rejected, abs(preference))


def _helpsteer2(row: Row) -> Comparison:
    first, second = row["first"], row["second"]
    if text(first, "prompt") != text(second, "prompt"):
        raise ValueError(
            "field 'prompt': this row and the next have different prompts, so their answers cannot be compared"
        )
    lead = number(first, "helpfulness") - number(second, "helpfulness")
    if not lead:
        raise ValueError("field 'helpfulness': both answers are equally good")
    better, worse = (first, second) if lead > 0 else (second, first)
    return Comparison(
        (user(text(first, "prompt")),),
        (assistant(text(better, "response")),),
        (assistant(text(worse, "response")),),
        abs(lead),
    )


@attrs.frozen
class _Neighbours:
    """Rows two by two."""

    rows: Rows

    def __attrs_post_init__(self) -> None:
        if len(self.rows) < 2:
            raise DataError(f"{self.rows.name}: a comparison is made of two rows, and there is {len(self.rows)}")

    @property
    def name(self) -> str:
        return self.rows.name

    @property
    def columns(self) -> tuple[str, ...]:
        return ("first", "second")

    def __len__(self) -> int:
        return len(self.rows) // 2

    def row(self, index: int) -> Mapping[str, Any]:
        return {"first": self.rows[2 * index], "second": self.rows[2 * index + 1]}

    def where(self, index: int) -> str:
        return self.rows.where(2 * index)


_SCHEMAS: Mapping[str, Callable[[Row], Comparison]] = {"hh": _hh, "helpsteer2": _helpsteer2, "helpsteer3": _helpsteer3}
