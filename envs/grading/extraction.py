r"""Where in a text the answer stands.

1. the last `\boxed{...}` (or several, where nothing but "and" or a comma stands between them)
2. what follows the last `####`, as in GSM8K
3. what follows the last "answer is", "answer:"
4. the whole text, where it is one short line without anything else in it
5. the last formula between dollars or `\( \)`, `\[ \]`
6. the last number

Linear in the length of the text, of which only the end is looked at.
"""

from __future__ import annotations

import re
from typing import Literal

import attrs

LONGEST = 20_000
"""Characters from the end in which a box or #### is looked for: an answer comes last."""
TAIL = 4_000
"""Characters from the end in which anything else is looked for."""
MOST_TRIES = 40
"""Boxes that never close, or that are none, before the search for one is given up."""
SHORT = 240
"""Characters of a text that may be an answer as it is."""

How = Literal["boxed", "####", "answer is", "whole", "formula", "number"]


@attrs.frozen
class Found:
    """An answer, and by what it was recognised."""

    text: str
    how: How
    number: str | None = None
    """The only number in it, where it may be more than an answer: "the answer is the 42 that we found"."""


_THINKING = re.compile(r"</think(?:ing)?>")
_BETWEEN_BOXES = re.compile(r"[\s$.,;:*]*(?:and|or|\\text\{\s*(?:and|or)\s*\})?[\s$,;:*]*")
_ANSWER = re.compile(
    r"(?:answer|solution|result)\**\s*(?:is|are|equals|would\ be|will\ be|=|:)\**\s*:?\**\s*|答案(?:是|为|：|:)\s*",
    re.IGNORECASE | re.VERBOSE,
)
_DELIMITER = re.compile(r"\\\\|\\\$|\$\$|\$|\\\(|\\\)|\\\[|\\\]|\n")
_CLOSED_BY = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_NUMBER = re.compile(
    r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?(?:\s*(?:\\?%|percent\b))?(?![\d])|(?<![\w.,])-?\.\d+"
    r"|-?\\[dt]?frac\{-?\d+\}\{\d+\}"
)
_SENTENCE_END = re.compile(r"\n|(?<=[^\d.])\.(?:\s|$)|(?<=\d)\.(?:\s+[A-Z]|\s*$)|[!?](?:\s|$)")
_REMARK = re.compile(r",?\s+(?:because|since|as|so|which|where|hence|therefore|thus|but)\b|\s+\(", re.IGNORECASE)


def extract(text: str) -> Found | None:
    """The answer that a text settles on; None where there is none."""
    if len(text) > LONGEST:
        text = text[-LONGEST:]
    thought = None
    for thought in _THINKING.finditer(text):  # noqa: B007  (the last one)
        pass
    if thought is not None:
        text = text[thought.end() :]
    tail = text if len(text) <= TAIL else text[-TAIL:]
    for rule in (_boxed, _marked, _announced, _whole, _formula, _number):
        found = rule(text if rule in (_boxed, _marked) else tail)
        if found is not None and found.text.strip():
            return found
    return None


def _boxed(text: str) -> Found | None:
    boxes: list[str] = []
    begins = len(text)
    while (found := _last_box(text, begins)) is not None:
        start, end, inside = found
        if boxes and (begins - end > 40 or not _BETWEEN_BOXES.fullmatch(text, end, begins)):
            break
        if not boxes or inside != boxes[-1]:
            boxes.append(inside)
        begins = start
        if len(boxes) == 8:
            break
    return Found(", ".join(reversed(boxes)), "boxed") if boxes else None


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def _last_box(text: str, before: int) -> tuple[int, int, str] | None:
    """(begin, end, content) of the last box that closes before a place; of boxes in one another the inner one."""
    at = before
    for _ in range(MOST_TRIES):
        at = max(text.rfind("\\boxed", 0, at), text.rfind("\\fbox", 0, at))
        if at < 0:
            return None
        opened = _BOX.match(text, at)
        end = None if opened is None else _closing_brace(text, opened.end(), before)
        if opened is not None and end is not None:
            return at, end, text[opened.end() : end - 1]
    return None


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def _closing_brace(text: str, at: int, before: int) -> int | None:
    """The place behind the brace that closes one opened before `at`."""
    depth = 1
    for brace in _BRACE.finditer(text, at, before):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if not depth:
                return brace.end()
    return None


def _marked(text: str) -> Found | None:
    head, mark, tail = text.rpartition("####")
    del head
    return Found(tail.strip().partition("\n")[0], "####") if mark else None


def _announced(text: str) -> Found | None:
    last = None
    for last in _ANSWER.finditer(text):  # noqa: B007  (the last one)
        pass
    if last is None:
        return None
    tail = text[last.end() : last.end() + SHORT].strip()
    if tail.startswith(("$$", "\\[", "$", "\\(")):
        formulas = _formulas(tail)
        if formulas and formulas[0].start == 0:
            return Found(_joined(tail, formulas), "answer is")
    end = _SENTENCE_END.search(tail)
    said = tail[: end.start()] if end is not None else tail
    remark = _REMARK.search(said)
    said = said[: remark.start()] if remark is not None else said
    inside = _formulas(said)
    numbers = tuple(dict.fromkeys(match[0] for match in _NUMBER.finditer(said)))
    if inside:
        said = ", ".join(formula.text for formula in inside)
    said = said.strip(" *")
    return Found(said, "answer is", numbers[0] if len(numbers) == 1 else None) if said.strip(".") else None


@attrs.frozen
class _Formula:
    start: int
    end: int
    text: str


def _formulas(text: str) -> list[_Formula]:
    r"""What stands between dollars, `\( \)` or `\[ \]`, in order. One pass; a single dollar's formula ends with its line, and $5 is a price."""
    found: list[_Formula] = []
    opened: re.Match[str] | None = None
    for mark in _DELIMITER.finditer(text):
        sign = mark[0]
        if opened is not None and sign == "$" == opened[0] and not _is_formula(text, opened.end(), mark.start()):
            opened = mark
        elif opened is not None and sign == _CLOSED_BY[opened[0]]:
            found.append(_Formula(opened.start(), mark.end(), text[opened.end() : mark.start()].strip()))
            opened = None
        elif sign == "\n":
            opened = None if opened is not None and opened[0] == "$" else opened
        elif opened is None and sign in _CLOSED_BY:
            opened = mark
    return [formula for formula in found if formula.text]


def _is_formula(text: str, start: int, end: int) -> bool:
    """Whether what stands between two dollars is one, and no text between two prices."""
    return (
        end > start
        and not text[start].isspace()
        and not text[end - 1].isspace()
        and not text[end + 1 : end + 2].isdigit()
    )


_PERCENT = re.compile(r"\s*(\\?%|percent\b)")
_JOINT = re.compile(r"\s{0,3}(?:,\s{0,3}(?:and|or)?|and|or)\s{0,3}")


def _joined(text: str, formulas: list[_Formula]) -> str:
    """The first formula, with a percent sign behind it, or further formulas joined to it by "and" or a comma."""
    first, *others = formulas
    if _PERCENT.match(text, first.end):
        return first.text + "\\%"
    found, end = [first.text], first.end
    for formula in others:
        if not _JOINT.fullmatch(text, end, formula.start):
            break
        found.append(formula.text)
        end = formula.end
    return ", ".join(found)


_COMMANDS = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[a-zA-Z]{2,}")
MOST_WORDS = 4
"""Words of an answer in words."""


def _whole(text: str) -> Found | None:
    text = text.strip()
    if not text or len(text) > SHORT or any(mark in text for mark in ("\n", "\\boxed", "\\fbox", "####")):
        return None
    formulas = _formulas(text)
    if formulas and (formulas[0].start > 0 or formulas[-1].end < len(text.rstrip(" ."))):
        return None
    words = [word for word in _WORD.findall(_COMMANDS.sub(" ", text)) if word not in ("and", "or")]
    return Found(text, "whole") if len(words) <= MOST_WORDS else None


def _formula(text: str) -> Found | None:
    formulas = _formulas(text)
    return Found(formulas[-1].text, "formula") if formulas else None


def _number(text: str) -> Found | None:
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007  (the last one)
        pass
    return None if last is None else Found(last[0], "number")
