"""Tasks with rubrics out of rows: `{"prompt": "...", "rubric": [{"criterion": "...", "weight": 2, "scale": [1, 5], "name": "..."}, "a plain criterion"]}`.

A prompt is what `engine.data.read_prompts` takes: a string, messages, a conversation up to its answer. A row without a rubric has the one that is given for all.
"""

from __future__ import annotations

import functools

from engine.data import Examples, OnBadRow, Row, Rows, prompt_of
from engine.data.examples import as_set
from envs.grading.rubrics import Rubric, RubricTask


def read_rubric_tasks(
    rows: Rows, *, common: Rubric | None = None, on_bad_row: OnBadRow = "error"
) -> Examples[RubricTask]:
    """Rows as tasks. `common`: the rubric of rows that have none. `on_bad_row` as for `engine.data.read_prompts`."""
    return as_set(Examples(rows, functools.partial(rubric_task_of, common=common)), on_bad_row)


def rubric_task_of(row: Row, common: Rubric | None = None) -> RubricTask:
    """A row as a task. Raises ValueError naming the field."""
    conversation = prompt_of(row)
    if row.get("rubric") is None:
        if common is None:
            raise ValueError("field 'rubric' is missing, and no rubric was given for all rows")
        return RubricTask(conversation, common)
    try:
        return RubricTask(conversation, Rubric.from_rows(row["rubric"]))
    except ValueError as error:
        raise ValueError(f"field 'rubric': {error}") from error
