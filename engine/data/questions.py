"""Questions with answers in words, what may be read to answer them, and corpora of passages.

hotpotqa         question, answer, context {title, sentences}       nq          question, answer [...]
2wikimultihopqa  query, answers; or as hotpotqa                     triviaqa    question, answer {value, aliases}
musique          question, answer, answer_aliases, paragraphs       popqa       question, possible_answers (a list as JSON text)
FlashRAG's, Search-R1's: question, golden_answers                   one's own   question | query, answer | answers | golden_answers

A corpus: text | contents | passage | paragraph_text, with or without title and id. Where `contents` begins with a title in quotes on a line of its own (FlashRAG's
Wikipedia), that is the title.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from engine.data.examples import Examples, OnBadRow, as_set
from engine.data.fields import missing, only_one, text, wrong
from engine.data.rows import Row, Rows

QUESTIONS = ("question", "query")
ANSWERS = ("golden_answers", "answers", "answer", "possible_answers")
TEXTS = ("text", "contents", "passage", "paragraph_text")


@attrs.frozen
class Passage:
    """A piece of a corpus."""

    text: str
    title: str = ""
    id: str | None = None


@attrs.frozen
class Question:
    """A question, and all that counts as its answer."""

    text: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()
    """What came with it to be read, the helpful and the others."""
    tags: tuple[str, ...] = ()
    """Kinds of question: type, level."""


def read_questions(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Examples[Question]:
    """Rows as questions, by their fields; the module says in which forms. `on_bad_row` as for `read_conversations`."""
    return as_set(Examples(rows, question_of), on_bad_row)


def read_passages(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Examples[Passage]:
    """Rows as passages of a corpus."""
    return as_set(Examples(rows, passage_of), on_bad_row)


def question_of(row: Row) -> Question:
    """A row as a question. Raises ValueError naming the field."""
    asked = only_one(row, QUESTIONS)
    if asked is None:
        raise missing(row, " or ".join(QUESTIONS))
    tags = tuple(row[field] for field in ("type", "level") if isinstance(row.get(field), str))
    return Question(text(row, asked).strip(), _answers(row), _passages(row), tags)


def passage_of(row: Row) -> Passage:
    """A row as a passage. Raises ValueError naming the field."""
    field = only_one(row, TEXTS)
    if field is None:
        raise missing(row, " or ".join(TEXTS[:2]))
    said, title = text(row, field).strip(), row.get("title")
    first, newline, rest = said.partition("\n")
    if title is None and newline and len(first) > 2 and first[0] == first[-1] == '"' and rest.strip():
        title, said = first[1:-1], rest.strip()
    if title is not None and not isinstance(title, str):
        raise wrong("title", "a string", title)
    name = row.get("id")
    return Passage(said, title or "", None if name is None else str(name))


def _answers(row: Row) -> tuple[str, ...]:
    field = only_one(row, ANSWERS)
    if field is None:
        raise missing(row, "answer, answers or golden_answers")
    value = row[field]
    if field == "possible_answers" and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"field {field!r}: not a list as JSON text: {error}") from None
    if isinstance(value, Mapping):
        value = [value.get("value"), *(value.get("aliases") or ())]
    found = [value] if _is_plain(value) else value
    if not isinstance(found, Sequence):
        raise wrong(field, "a string or a list of strings", value)
    found = [*found, *(row.get("answer_aliases") or ())]
    answers = [str(each).strip() for each in found if _is_plain(each) and str(each).strip()]
    if not answers:
        raise ValueError(f"field {field!r}: no answer in it")
    return tuple(dict.fromkeys(answers))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _passages(row: Row) -> tuple[Passage, ...]:
    if row.get("paragraphs") is not None:
        return tuple(_paragraph(each, "paragraphs") for each in _listed(row["paragraphs"], "paragraphs"))
    context: Any = row.get("context")
    if isinstance(context, str):  # some conversions keep the list as JSON text; other text is not for us
        try:
            context = json.loads(context)
        except ValueError:
            return ()
    if isinstance(context, Mapping):  # as columns
        titles = _listed(context.get("title"), "context.title")
        many = _listed(context.get("sentences", context.get("content")), "context.sentences")
        if len(titles) != len(many):
            raise ValueError(f"field 'context': {len(titles)} titles for {len(many)} passages")
        return tuple(_titled(title, sentences) for title, sentences in zip(titles, many, strict=True))
    found = []
    for each in _listed(context, "context") if context is not None else ():
        if isinstance(each, Mapping):
            found.append(_paragraph(each, "context"))
        elif isinstance(each, Sequence) and not isinstance(each, str) and len(each) == 2:
            found.append(_titled(*each))
        else:
            raise wrong("context", "a list of [title, sentences]", each)
    return tuple(found)


def _paragraph(value: Any, field: str) -> Passage:
    try:
        return passage_of(value)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"field {field!r}: {error}") from None


def _titled(title: Any, sentences: Any) -> Passage:
    if not isinstance(title, str):
        raise wrong("context", "titles that are strings", title)
    parts = [sentences] if isinstance(sentences, str) else _listed(sentences, "context")
    return Passage(" ".join(str(part).strip() for part in parts), title)


def _listed(value: Any, field: str) -> Sequence[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise wrong(field, "a list", value)
    return value
