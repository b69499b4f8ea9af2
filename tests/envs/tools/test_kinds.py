"""Types as JSON schema, and JSON values as values of those types."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tools.kinds import WRONG, UnsupportedType, kind_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Point:
    x: int
    y: float = 0.5


@attrs.frozen
class Path:
    points: list[Point]
    name: str = attrs.field(default="", validator=attrs.validators.max_len(3))


@dataclasses.dataclass
class Pair:
    left: str
    right: str | None = None
    many: list[int] = dataclasses.field(default_factory=list)


class Options(TypedDict):
    depth: int
    quick: NotRequired[bool]


@attrs.frozen
class Tree:
    children: list[Tree]


def read(kind: Any, value: Any) -> tuple[Any, list[str]]:
    problems: list[str] = []
    return kind_of(kind).read(json.loads(json.dumps(value)), "it", problems), problems


FITS = [
    (str, "a", "a"),
    (int, 3, 3),
    (int, 3.0, 3),  # JSON does not tell the two apart
    (float, 3, 3.0),
    (bool, True, True),
    (None, None, None),
    (Any, {"a": [1]}, {"a": [1]}),
    (list[int], [1, 2], [1, 2]),
    (Sequence[str], ["a"], ["a"]),
    (list, [1, "a"], [1, "a"]),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[int, str], [1, "a"], (1, "a")),
    (set[str], ["a", "b", "a"], {"a", "b"}),
    (frozenset[int], [1], frozenset([1])),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (Mapping[str, list[int]], {"a": [1]}, {"a": [1]}),
    (dict, {"a": 1}, {"a": 1}),
    (Literal["a", 2] | None, 2, 2),
    (Literal["a", 2] | None, None, None),
    (Literal[1, True], True, True),
    (Colour, "red", Colour.RED),
    (int | str, "a", "a"),
    (int | None, None, None),
    (list[int | Literal["all"]], [1, "all"], [1, "all"]),
    (Annotated[int, "how many"], 4, 4),
    (Point, {"x": 1}, Point(1, 0.5)),
    (Path, {"points": [{"x": 1, "y": 2}]}, Path([Point(1, 2.0)])),
    (Pair, {"left": "a", "right": None, "many": [1]}, Pair("a", None, [1])),
    (Options, {"depth": 2, "quick": True}, {"depth": 2, "quick": True}),
    (Options, {"depth": 2}, {"depth": 2}),
]


@pytest.mark.parametrize(("kind", "value", "wanted"), FITS, ids=str)
def test_what_fits(kind: Any, value: Any, wanted: Any) -> None:
    found, problems = read(kind, value)
    assert problems == []
    assert found == wanted
    assert type(found) is type(wanted)


MISFITS = [
    (str, 3, "it must be a string, not 3"),
    (int, "3", 'it must be an integer, not "3"'),
    (int, 3.5, "it must be an integer, not 3.5"),
    (int, True, "it must be an integer, not true"),
    (float, "1", 'it must be a number, not "1"'),
    (float, 10**400, "it must be a number, not 1000"),
    (bool, 1, "it must be true or false, not 1"),
    (None, 0, "it must be null, not 0"),
    (list[int], [1, "a", None], 'it[1] must be an integer, not "a"; it[2] must be an integer, not null'),
    (list[int], "1, 2", 'it must be a list, not "1, 2"'),
    (tuple[int, str], [1], "it must be a list of 2, not [1]"),
    (tuple[int, str], ["a", 1], 'it[0] must be an integer, not "a"; it[1] must be a string, not 1'),
    (set[Any], [[1]], "it must be a list of plain values, not [[1]]"),
    (dict[str, int], {"a": "b"}, 'it.a must be an integer, not "b"'),
    (dict[str, int], [], "it must be an object, not []"),
    (Literal["km", "mi"], "ft", 'it must be one of "km", "mi", not "ft"'),
    (Literal[1, 2], True, "it must be one of 1, 2, not true"),
    (Literal["only"], "x", 'it must be "only", not "x"'),
    (Colour, "RED", 'it must be one of "red", "blue", not "RED"'),
    (int | str, None, "it must be an integer or a string, not null"),
    (Point, {}, "it.x is missing"),
    (Point, {"x": 1, "z": 2}, 'it."z" is not known; there are x, y'),
    (Point, 3, "it must be an object, not 3"),
    (Point | None, {"x": "1"}, 'it.x must be an integer, not "1"'),
    (Path, {"points": [{"x": 1}, {"y": "a"}]}, 'it.points[1].x is missing; it.points[1].y must be a number, not "a"'),
    (Path, {"points": [], "name": "long name"}, "it: "),
    (Options, {"quick": 1}, "it.depth is missing; it.quick must be true or false, not 1"),
    (str, ["x" * 200], f'it must be a string, not ["{"x" * 58}…'),
]


@pytest.mark.parametrize(("kind", "value", "said"), MISFITS, ids=str)
def test_what_does_not_fit(kind: Any, value: Any, said: str) -> None:
    found, problems = read(kind, value)
    assert found is WRONG
    assert "; ".join(problems).startswith(said)


SCHEMAS = [
    (str, {"type": "string"}),
    (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
    (list[float], {"type": "array", "items": {"type": "number"}}),
    (set[bool], {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}),
    (
        tuple[int, str],
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
    ),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
    (Literal["a", 1], {"enum": ["a", 1]}),
    (Colour, {"type": "string", "enum": ["red", "blue"]}),
    (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    (Any, {}),
    (
        Point,
        {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.5}},
            "required": ["x"],
            "additionalProperties": False,
        },
    ),
    (
        Pair,
        {
            "type": "object",
            "properties": {
                "left": {"type": "string"},
                "right": {"type": "string"},
                "many": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["left"],
            "additionalProperties": False,
        },
    ),
]


@pytest.mark.parametrize(("kind", "schema"), SCHEMAS, ids=str)
def test_schemas(kind: Any, schema: Any) -> None:
    assert kind_of(kind).schema == schema
    json.dumps(schema)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (bytes, "bytes has no JSON schema"),
        (complex, "complex"),
        (list[bytes], "bytes"),
        (dict[int, str], "keys of a JSON object are texts, not int"),
        (Literal[b"a"], "a choice among"),
        (Tree, "children: Tree contains itself"),
        (lambda: None, "no JSON schema"),
    ],
    ids=str,
)
def test_types_that_are_refused(kind: Any, said: str) -> None:
    with pytest.raises(UnsupportedType, match=said):
        kind_of(kind)


plain = [str, int, float, bool, type(None), Literal["a", 1], Colour, Point, Options]
kinds = st.recursive(
    st.sampled_from(plain),
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),
        inner.map(lambda kind: dict[str, kind]),
        st.tuples(inner, inner).map(lambda pair: tuple[pair[0], pair[1]]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=4,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 2.0]) | st.sampled_from(["a", "red", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "depth", "k"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(kind=kinds, value=values)
def test_schema_and_reading_agree(kind: Any, value: Any) -> None:
    """What is read is what a JSON-schema validator written here, from the specification alone, lets pass."""
    made = kind_of(kind)
    problems: list[str] = []
    found = made.read(value, "it", problems)
    assert (found is WRONG) == bool(problems)
    assert valid(value, made.schema) == (not problems)


def valid(value: Any, schema: Mapping[str, Any]) -> bool:
    if "anyOf" in schema:
        return any(valid(value, each) for each in schema["anyOf"])
    if "enum" in schema and not any(value == each and type(value) is type(each) for each in schema["enum"]):
        return False
    checks = {
        "string": lambda: isinstance(value, str),
        "boolean": lambda: isinstance(value, bool),
        "null": lambda: value is None,
        "number": lambda: isinstance(value, int | float) and not isinstance(value, bool),
        "integer": lambda: isinstance(value, int | float) and not isinstance(value, bool) and value == int(value),
        "array": lambda: isinstance(value, list),
        "object": lambda: isinstance(value, dict),
    }
    if "type" in schema and not checks[schema["type"]]():
        return False
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema["items"]] * len(value)
        return len(items) == len(value) and all(valid(each, item) for each, item in zip(value, items, strict=True))
    if schema.get("type") == "object":
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if any(key not in value for key in schema.get("required", ())):
            return False
        return all(
            valid(each, properties[key]) if key in properties else isinstance(others, dict) and valid(each, others)
            for key, each in value.items()
        )
    return True
