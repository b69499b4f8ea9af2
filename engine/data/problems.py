"""Problems with an answer that can be checked.

gsm8k        question, answer ("... #### 42")                  math         problem, solution ("... \\boxed{42} ..."), level, type
polaris      problem, answer, difficulty                       math500      problem, solution, answer, subject, level
deepmath     question, final_answer, difficulty, topic         one's own    question | problem, answer | final_answer | solution
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from engine.data.examples import Examples, OnBadRow, as_set
from engine.data.fields import missing, only_one, text, wrong
from engine.data.rows import Row, Rows

QUESTIONS = ("question", "problem", "prompt")
ANSWERS = ("answer", "final_answer")
MARK = "####"
"""What stands before the answer in GSM8K's solutions."""


@attrs.frozen
class Problem:
    """A question and its answer, as text."""

    question: str
    answer: str
    solution: str | None = None
    """The way to the answer, where the data has it."""
    tags: tuple[str, ...] = ()
    """Kinds of problem: subject, level."""


def read_problems(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Examples[Problem]:
    """Rows as problems: by the schema of `rows` where it is known, otherwise by their fields. `on_bad_row` as for `read_conversations`.

    By fields: `answer` or `final_answer` is the answer (what follows ####, where that stands in it), and without either the last \\boxed{} of `solution`.
    """
    return as_set(Examples(rows, _SCHEMAS.get(rows.schema or "", problem_of)), on_bad_row)


def problem_of(row: Row) -> Problem:
    """A row as a problem, by its fields. Raises ValueError naming the field."""
    asked = only_one(row, QUESTIONS)
    if asked is None:
        raise missing(row, " or ".join(QUESTIONS[:2]))
    answered = only_one(row, ANSWERS)
    if answered is None:
        if row.get("solution") is None:
            raise missing(row, "answer or solution")
        return _boxed_problem(row, asked)
    if isinstance(row[answered], str) and MARK in row[answered]:
        return _marked_problem(row, asked, answered)
    solution = row.get("solution")
    return Problem(text(row, asked), _answer(row, answered), solution if isinstance(solution, str) else None)


def _marked_problem(row: Row, asked: str = "question", answered: str = "answer") -> Problem:
    solution, mark, answer = text(row, answered).rpartition(MARK)
    if not mark or not answer.strip():
        raise ValueError(f"field {answered!r}: no answer after {MARK}")
    return Problem(text(row, asked), answer.strip().replace(",", ""), solution.strip())


def _boxed_problem(row: Row, asked: str = "problem") -> Problem:
    solution = text(row, "solution")
    answer = last_boxed(solution)
    if answer is None or not answer.strip():
        raise ValueError("field 'solution': it holds no answer in \\boxed{}")
    return Problem(text(row, asked), answer.strip(), solution, _tags(row, "type", "level"))


def _polaris(row: Row) -> Problem:
    return Problem(text(row, "problem"), _answer(row, "answer"), tags=_tags(row, "difficulty"))


def _deepmath(row: Row) -> Problem:
    solution = row.get("r1_solution_1")
    return Problem(
        text(row, "question"),
        _answer(row, "final_answer"),
        solution if isinstance(solution, str) else None,
        _tags(row, "topic"),
    )


def _math500(row: Row) -> Problem:
    return Problem(text(row, "problem"), _answer(row, "answer"), text(row, "solution"), _tags(row, "subject", "level"))


def _answer(row: Row, field: str) -> str:
    """A string, or a number as JSON writes it."""
    value = row.get(field)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if field in row and not isinstance(value, str):
        raise wrong(field, "a string or a number", value)
    return text(row, field).strip()


def _tags(row: Row, *fields: str) -> tuple[str, ...]:
    found: list[Any] = [row[field] for field in fields if row.get(field) is not None]
    return tuple(value if isinstance(value, str) else f"level {value}" for value in found)


_SCHEMAS: Mapping[str, Callable[[Row], Problem]] = {
    "gsm8k": _marked_problem,
    "math": _boxed_problem,
    "math500": _math500,
    "polaris": _polaris,
    "deepmath": _deepmath,
}


def last_boxed(solution: str) -> str | None:
    """What stands in the last \\boxed{...} or \\fbox{...}, braces matched; None where there is none, or where it never closes."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    brace = solution.find("{", start)
    if brace < 0 or solution[start:brace].strip() not in ("\\boxed", "\\fbox"):
        rest = solution[start:].removeprefix("\\boxed").split("$")[0].split()  # "\boxed 5"
        return rest[0] if rest and rest[0] else None
    depth = 0
    for at in range(brace, len(solution)):
        if solution[at] == "{":
            depth += 1
        elif solution[at] == "}":
            depth -= 1
            if not depth:
                return solution[brace + 1 : at]
    return None
