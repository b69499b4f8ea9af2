"""Functions as tools, and what becomes of calls: results, errors in words, budgets. Nothing a model writes raises."""

from __future__ import annotations

import functools
import threading
import time
from typing import Annotated, Any, Literal

import anyio
import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rendering.messages import ToolCallPart, UnparsedToolCallPart
from engine.runtime.processes import WorkerPool
from engine.runtime.simulation import simulate
from envs.tools import (
    CallBudget,
    Toolbox,
    ToolError,
    ToolResult,
    ToolUnavailable,
    WrongArguments,
    as_tool,
    tool,
    tools_of,
)
from tests.envs.tools import worker_tools

TIMELESS = CallBudget(seconds=None)
"""For tools in threads beside a virtual clock, to which a thread looks idle."""


def call(name: str, **arguments: Any) -> ToolCallPart:
    return ToolCallPart(name, arguments, f"id-{name}")


def add(left: int, right: int = 1) -> int:
    """Adds two numbers.

    Carefully.

    Args:
        left: the first
            number.
        right: the second.
    """
    return left + right


# ---- functions as tools


def test_a_function_says_what_it_takes() -> None:
    assert as_tool(add).spec.to_openai() == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.\n\nCarefully.",
            "parameters": {
                "type": "object",
                "properties": {
                    "left": {"type": "integer", "description": "the first number."},
                    "right": {"type": "integer", "description": "the second.", "default": 1},
                },
                "required": ["left"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize(
    "docstring",
    [
        "Adds.\n\n:param left: the first\n:param right: the second",
        "Adds.\n\nParameters\n----------\nleft : int\n    the first\nright : int\n    the second",
        "Adds.\n\nArgs:\n    left (int): the first\n    right: the second\n\nReturns:\n    their sum",
    ],
    ids=["Sphinx", "numpy", "Google"],
)
def test_docstrings_of_all_styles(docstring: str) -> None:
    def plus(left: int, right: int) -> int:
        return left + right

    plus.__doc__ = docstring
    spec = as_tool(plus).spec
    assert spec.description == "Adds."
    described = {name: schema["description"] for name, schema in spec.parameters["properties"].items()}
    assert described == {"left": "the first", "right": "the second"}


def test_options_of_the_decorator() -> None:
    @tool(name="sum-of", description="Sums.", runs="loop", seconds=1.5, result_characters=9)
    def plus(values: Annotated[list[int], "what to add"]) -> int:
        """Not shown."""
        return sum(values)

    made = as_tool(plus)
    assert (made.name, made.spec.description, made.runs) == ("sum-of", "Sums.", "loop")
    assert made.spec.parameters["properties"]["values"]["description"] == "what to add"
    assert plus([1, 2]) == 3  # it stays a function


def test_where_tools_run() -> None:
    async def waits() -> None: ...

    def blocks() -> None: ...

    assert [as_tool(each).runs for each in (waits, blocks, worker_tools.power)] == ["loop", "thread", "process"]


def test_methods_are_collected_in_order() -> None:
    class Base:
        @tool
        def first(self) -> str:
            return "1"

        @tool
        def second(self) -> str:
            return "2"

        def hidden(self) -> str:
            return "no tool"

    class Derived(Base):
        @tool
        def third(self) -> str:
            return "3"

        @tool
        def first(self) -> str:
            return "one"

    assert [each.name for each in tools_of(Derived())] == ["first", "second", "third"]
    assert tools_of(Derived())[0].function() == "one"


def untyped(x) -> None: ...


def starred(*values: int) -> None: ...


def named(**values: int) -> None: ...


def positional(x: int, /) -> None: ...


def unsupported(x: bytes) -> None: ...


def unknown_type(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def described_wrongly(x: int) -> None:
    """Does.

    Args:
        y: there is none.
    """


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (untyped, "tool 'untyped', parameter 'x' has no type"),
        (starred, r"parameter 'values': a model fills parameters by name"),
        (named, r"parameter 'values': a model fills"),
        (positional, r"parameter 'x': a model fills"),
        (unsupported, "tool 'unsupported', parameter x: bytes has no JSON schema"),
        (unknown_type, "tool 'unknown_type': a type in its signature is not known"),
        (described_wrongly, "its docstring describes y, which its signature lacks"),
        (lambda: None, "needs a name"),
        (functools.partial(add, 1), "needs a name"),
        (tool(name="no spaces")(lambda: None), "needs a name"),
        (tool(name="x", runs="process")(lambda: None), "cannot run in a worker process"),
    ],
    ids=lambda value: getattr(value, "__name__", "function"),
)
def test_functions_that_are_refused(function: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        as_tool(function)


def test_async_functions_stay_on_the_loop() -> None:
    @tool(runs="thread")
    async def waits() -> None: ...

    with pytest.raises(TypeError, match="async, so it runs on the event loop"):
        as_tool(waits)


def test_reading_arguments() -> None:
    made = as_tool(add)
    assert made.read({"left": 1}) == {"left": 1}
    with pytest.raises(WrongArguments, match=r'left is missing; right must be an integer, not "2"'):
        made.read({"right": "2"})
    with pytest.raises(WrongArguments, match='"middle" is not known; there are left, right'):
        made.read({"left": 1, "middle": 2})


# ---- toolboxes


def test_boxes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="two tools are called 'add'"):
        Toolbox([add, as_tool(add)])
    with pytest.raises(ValueError, match="'power' runs in a worker process"):
        Toolbox([worker_tools.power])


@attrs.frozen
class Reading:
    degrees: float
    unit: str


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        (None, "done"),
        (3, "3"),
        ({"ä": [1, True, None]}, '{"ä": [1, true, null]}'),
        (Reading(1.5, "C"), '{"degrees": 1.5, "unit": "C"}'),
        ({3, 1}, "[1, 3]"),
        (np.arange(3), "[0, 1, 2]"),
        ([np.float32(0.5)], "[0.5]"),
        (ToolResult("said"), "said"),
    ],
    ids=str,
)
@pytest.mark.parametrize("runs", ["loop", "thread"])
async def test_results_are_text(runs: Any, value: Any, text: str) -> None:
    @tool(runs=runs)
    def give() -> Any:
        return value

    (outcome,) = await Toolbox([give], budget=TIMELESS).run([call("give")])
    assert (outcome.error, outcome.text) == (None, text)
    part = outcome.message().content[0]
    assert (part.text, part.name, part.id) == (text, "give", "id-give")


@pytest.mark.anyio
async def test_what_goes_wrong_is_said_to_the_model() -> None:
    def broken(how: Literal["bug", "words", "unwritable"]) -> Any:
        if how == "bug":
            raise KeyError("nothing here")
        if how == "words":
            raise ToolError("the drawer is locked")
        return object()

    async def asynchronous() -> str:
        raise TimeoutError("its own")

    box = Toolbox([add, broken, asynchronous], budget=TIMELESS)
    outcomes = await box.run(
        [
            UnparsedToolCallPart('{"name": "add"', "not JSON: it ends early"),
            call("subtract", left=1),
            call("add", left="1"),
            call("broken", how="bug"),
            call("broken", how="words"),
            call("broken", how="unwritable"),
            call("asynchronous"),
            call("add", left=1),
        ]
    )
    assert [(outcome.error, outcome.text) for outcome in outcomes] == [
        ("unparsed", "Error: the call could not be read: not JSON: it ends early"),
        ("unknown_tool", "Error: there is no tool 'subtract'; there are add, broken, asynchronous"),
        ("wrong_arguments", 'Error: left must be an integer, not "1"'),
        ("raised", "Error: KeyError: 'nothing here'"),
        ("raised", "Error: the drawer is locked"),
        ("raised", "Error: the tool's result cannot be written as JSON: a object is none of JSON's values"),
        ("raised", "Error: TimeoutError: its own"),
        (None, "2"),
    ]
    assert outcomes[0].message().content[0].name == "unknown"
    assert outcomes[0].log() == {"unparsed": '{"name": "add"', "error": outcomes[0].text}
    assert outcomes[7].log() == {"name": "add", "arguments": {"left": 1}, "result": "2"}


names = st.sampled_from(["add", "nothing", "", "\ud800", "a" * 300])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
calls = st.one_of(
    st.builds(
        ToolCallPart,
        names,
        st.dictionaries(st.sampled_from(["left", "right", "x"]), json_values, max_size=3),
        st.none(),
    ),
    st.builds(UnparsedToolCallPart, st.text(max_size=20), st.text(max_size=20)),
)


@given(st.lists(calls, max_size=4))
def test_whatever_a_model_writes_ends_in_outcomes(made: list[Any]) -> None:
    quick = tool(runs="loop")(lambda left, right=1: left + right)
    quick.__name__, quick.__annotations__ = "add", {"left": int, "right": int}
    outcomes = anyio.run(Toolbox([quick]).run, made)
    assert [outcome.call for outcome in outcomes] == made
    for outcome in outcomes:
        assert outcome.text.startswith("Error: ") == (outcome.error is not None)
        fits = isinstance(outcome.call, ToolCallPart) and outcome.call.name == "add"
        assert fits or outcome.error in ("unparsed", "unknown_tool")


@pytest.mark.anyio
async def test_long_results_are_cut_and_that_is_said() -> None:
    @tool
    def long() -> str:
        return "abcdefghij" * 2

    @tool(result_characters=15)
    def longer() -> str:
        return "abcdefghij" * 2

    def shout() -> str:
        raise ToolError("x" * 30)

    box = Toolbox([long, longer, shout], budget=CallBudget(seconds=None, result_characters=10))
    one, two, three = await box.run([call("long"), call("longer"), call("shout")])
    assert one.text == "abcdefghij\n[cut off: 10 more characters]"
    assert two.text == "abcdefghijabcde\n[cut off: 5 more characters]"
    assert three.text == f"Error: {'x' * 10}\n[cut off: 20 more characters]"
    assert all(outcome.truncated for outcome in (one, two, three))


def test_calls_of_one_answer_run_at_once() -> None:
    async def wait(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async def program(parallel: bool) -> list[str]:
        outcomes = await Toolbox([wait], parallel=parallel).run([call("wait", seconds=s) for s in (3, 1, 2)])
        return [outcome.text for outcome in outcomes]

    at_once, in_turn = simulate(program, True), simulate(program, False)
    assert at_once.unwrap() == in_turn.unwrap() == ["3.0", "1.0", "2.0"]
    assert (at_once.seconds, in_turn.seconds) == (3, 6)


def test_a_call_ends_at_its_budget() -> None:
    """Alone: the others of the answer go on."""
    cancelled = []

    @tool(seconds=2)
    async def slow() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(anyio.current_time())
        return ""

    async def usual() -> str:
        await anyio.sleep(9)
        return "there"

    async def program() -> list[Any]:
        return [(each.error, each.text) for each in await Toolbox([slow, usual]).run([call("slow"), call("usual")])]

    report = simulate(program)
    assert report.unwrap() == [("timeout", "Error: slow did not finish within 2 s"), (None, "there")]
    assert report.seconds == 9
    assert len(cancelled) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_that_hangs_is_left_alone(backend: str) -> None:
    """The wait ends at the budget; the thread cannot be ended, and takes none of those that the program needs."""
    release = threading.Event()

    @tool(seconds=0.05)
    def hang() -> str:
        release.wait(20)
        return "late"

    async def program() -> float:
        box = Toolbox([hang, add], threads=4)
        began = time.monotonic()
        outcomes = await box.run([call("hang"), call("hang"), call("add", left=1)])
        assert [outcome.error for outcome in outcomes] == ["timeout", "timeout", None]
        took = time.monotonic() - began
        release.set()
        return took

    assert anyio.run(program, backend=backend) < 5


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_processes_are_ended_at_the_budget(backend: str) -> None:
    async def program() -> list[tuple[Any, str]]:
        async with WorkerPool(2) as pool:
            tools = [worker_tools.power, worker_tools.forever, worker_tools.crash, worker_tools.refuse]
            box = Toolbox(tools, pool=pool)
            outcomes = await box.run(
                [
                    call("power", base=3),
                    call("power", exponent=3, base=2),
                    call("forever"),
                    call("crash"),
                    call("refuse", how="words"),
                    call("refuse", how="bug"),
                    call("power", base=1),
                ]
            )
            with pytest.raises(ToolUnavailable, match="world"):
                await box.run([call("refuse", how="world")])
        return [(outcome.error, outcome.text) for outcome in outcomes]

    assert anyio.run(program, backend=backend) == [
        (None, "9"),
        (None, "8"),
        ("timeout", "Error: forever did not finish within 0.3 s"),
        ("raised", "Error: crash crashed"),
        ("raised", "Error: words"),
        ("raised", "Error: KeyError: 'bug'"),
        (None, "1"),
    ]


@pytest.mark.anyio
async def test_calls_beyond_what_is_allowed_are_refused() -> None:
    made = []

    @tool(runs="loop")
    def note(n: int) -> None:
        made.append(n)

    box = Toolbox([note])
    outcomes = await box.run([call("note", n=n) for n in range(4)], allowed=2)
    assert sorted(made) == [0, 1]
    assert [outcome.error for outcome in outcomes] == [None, None, "refused", "refused"]
    assert outcomes[2].text == "Error: this call was not made: only the first 2 of this answer were"
    (outcome,) = await box.run([call("note", n=9)], allowed=0)
    assert outcome.text == "Error: this call was not made: no calls are left"
    assert sorted(made) == [0, 1]


@pytest.mark.anyio
async def test_nothing_runs_behind_a_final_call_in_turn() -> None:
    made = []

    @tool(runs="loop")
    def submit(answer: str) -> ToolResult:
        made.append(answer)
        return ToolResult(answer, final=True)

    outcomes = await Toolbox([submit], parallel=False).run([call("submit", answer="a"), call("submit", answer="b")])
    assert (made, [outcome.final for outcome in outcomes]) == (["a"], [True, False])


@pytest.mark.anyio
async def test_a_broken_world_is_nobodys_answer() -> None:
    async def search() -> str:
        raise ToolUnavailable("the index is gone")

    with pytest.raises(ToolUnavailable, match="the index is gone"):
        await Toolbox([search, add], budget=TIMELESS).run([call("search"), call("add", left=1)])
