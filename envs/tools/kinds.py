"""Types of Python as JSON schema, and JSON values as values of those types.

    kind = kind_of(list[Literal["km", "mi"]])
    kind.schema                                  {"type": "array", "items": {"type": "string", "enum": ["km", "mi"]}}
    kind.read(["km", "ft"], "units", problems)   problems: ["units[1] must be one of 'km', 'mi', not 'ft'"]

What a model writes is taken strictly: the text "3" is no number, and a number no text. Only what JSON itself does not tell apart is: 3.0 is an integer, and
3 a float.
"""

from __future__ import annotations

import collections.abc
import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from envs.tools.fields import Field, fields_of

Problems = list[str]
"""What does not fit, one sentence each."""
WRONG: Any = object()
"""What `read` gives where something does not fit; the reason is in the problems."""
SHOWN = 60
"""Characters of a wrong value that are repeated to who wrote it."""


@attrs.frozen
class Kind:
    """A type, as far as JSON goes."""

    name: str
    """For people: "an integer"."""
    schema: Mapping[str, Any]
    read: Callable[[Any, str, Problems], Any]
    """`read(value, where, problems)`: the value as the type has it; WRONG, with sentences added, where it does not fit."""


class UnsupportedType(TypeError):
    """A type that has no JSON schema here."""


def kind_of(annotation: Any, inside: tuple[Any, ...] = ()) -> Kind:
    """The kind of a type. Raises UnsupportedType naming it. `inside`: classes it is a part of, since a schema that contains itself is refused."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin in _SPECIAL:
        return _SPECIAL[origin](args, inside)
    for bare in (annotation, origin):
        if bare in _ARRAYS:
            return _array(bare, args, inside)
        if bare in _MAPPINGS:
            return _mapping(args, inside)
    return _class_kind(annotation, inside)


def _class_kind(annotation: Any, inside: tuple[Any, ...]) -> Kind:
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return _choice([member.value for member in annotation], list(annotation))
    fields = fields_of(annotation)
    if fields is None:
        raise UnsupportedType(
            f"{_type_name(annotation)} has no JSON schema here: take str, int, float, bool, None, Literal, an Enum, list, tuple, set, dict, a union of "
            "them, or an attrs class, a dataclass or a TypedDict of such fields"
        )
    if annotation in inside:
        raise UnsupportedType(f"{_type_name(annotation)} contains itself, which is not offered here")
    return _record(annotation, fields, (*inside, annotation))


def object_kind(name: str, fields: list[Field], make: Callable[..., Any], inside: tuple[Any, ...] = ()) -> Kind:
    """An object with these fields and no others; what is read is `make(**fields)`. Raises UnsupportedType naming the field."""
    kinds: dict[str, Kind] = {}
    properties: dict[str, Any] = {}
    for field in fields:
        try:
            kinds[field.name] = _optional(field, inside)
        except UnsupportedType as error:
            raise UnsupportedType(f"{field.name}: {error}") from None
        properties[field.name] = _described(kinds[field.name].schema, field)
    required = [field.name for field in fields if field.required]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def read(value: Any, where: str, problems: Problems) -> Any:
        if not isinstance(value, Mapping):
            return _misfit(value, where, name, problems)
        before = len(problems)
        dotted = f"{where}." if where else ""
        unknown = [key for key in value if key not in kinds]
        for key in unknown:
            problems.append(f"{dotted}{_short(key)} is not known; there are {', '.join(kinds) or 'none'}")
        for key in required:
            if key not in value:
                problems.append(f"{dotted}{key} is missing")
        found = {key: kinds[key].read(each, f"{dotted}{key}", problems) for key, each in value.items() if key in kinds}
        return WRONG if len(problems) > before else make(**found)

    return Kind(name, schema, read)


def _optional(field: Field, inside: tuple[Any, ...]) -> Kind:
    """A parameter that may be left out and is None then is declared as what it is otherwise: models do better with one type than with a choice of two.
    An explicit null is understood all the same."""
    arms = get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType) else ()
    if field.required or field.default is not None or type(None) not in arms:
        return kind_of(field.annotation, inside)
    given = [arm for arm in arms if arm is not type(None)]
    inner = kind_of(given[0] if len(given) == 1 else Union[tuple(given)], inside)  # noqa: UP007  (made at run time)

    def read(value: Any, where: str, problems: Problems) -> Any:
        return None if value is None else inner.read(value, where, problems)

    return Kind(inner.name, inner.schema, read)


def _described(schema: Mapping[str, Any], field: Field) -> dict[str, Any]:
    described = dict(schema)
    if field.description:
        described["description"] = field.description
    if not field.required and field.default is not None:
        default = field.default.value if isinstance(field.default, enum.Enum) else field.default
        try:
            json.dumps(default, allow_nan=False)
        except (TypeError, ValueError):
            return described  # what JSON cannot say is left to the description
        described["default"] = default
    return described


# ---- the kinds


def _simple(name: str, schema: Mapping[str, Any], fits: Callable[[Any], bool], convert: Callable[[Any], Any]) -> Kind:
    def read(value: Any, where: str, problems: Problems) -> Any:
        return convert(value) if fits(value) else _misfit(value, where, name, problems)

    return Kind(name, schema, read)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _is_float(value: Any) -> bool:
    try:
        return _is_number(value) and float(value) == float(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _same(value: Any) -> Any:
    return value


_PLAIN: dict[Any, Kind] = {
    Any: _simple("anything", {}, lambda _: True, _same),
    object: _simple("anything", {}, lambda _: True, _same),
    str: _simple("a string", {"type": "string"}, lambda value: isinstance(value, str), _same),
    bool: _simple("true or false", {"type": "boolean"}, lambda value: isinstance(value, bool), _same),
    int: _simple("an integer", {"type": "integer"}, _is_integer, int),
    float: _simple("a number", {"type": "number"}, _is_float, float),
    None: _simple("null", {"type": "null"}, lambda value: value is None, _same),
    type(None): _simple("null", {"type": "null"}, lambda value: value is None, _same),
}
_ARRAYS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Set: frozenset,
}
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _annotated(args: tuple[Any, ...], inside: tuple[Any, ...]) -> Kind:
    inner = kind_of(args[0], inside)
    described = next((extra for extra in args[1:] if isinstance(extra, str)), None)
    return inner if described is None else attrs.evolve(inner, schema={**inner.schema, "description": described})


def _choice(values: Sequence[Any], meanings: Sequence[Any]) -> Kind:
    """One of several values, and what each means. True is not 1 here."""
    if not all(isinstance(value, str | int | bool | None) for value in values):
        raise UnsupportedType(
            f"a choice among {list(values)} cannot be written in JSON: texts, integers, truth values and null can"
        )
    kinds = {type(value) for value in values}
    typed = {"type": _NAMES[next(iter(kinds))]} if len(kinds) == 1 and kinds <= _NAMES.keys() else {}
    shown = ", ".join(_short(value) for value in values)
    name = shown if len(values) == 1 else f"one of {shown}"

    def read(value: Any, where: str, problems: Problems) -> Any:
        for possible, meaning in zip(values, meanings, strict=True):
            if type(possible) is type(value) and possible == value:
                return meaning
        return _misfit(value, where, name, problems)

    return Kind(name, {**typed, "enum": list(values)}, read)


def _union(args: tuple[Any, ...], inside: tuple[Any, ...]) -> Kind:
    arms = [kind_of(arm, inside) for arm in args]
    name = " or ".join(arm.name for arm in arms)

    def read(value: Any, where: str, problems: Problems) -> Any:
        closest: Problems | None = None
        for arm in arms:
            tried: Problems = []
            found = arm.read(value, where, tried)
            if not tried:
                return found
            if isinstance(value, Mapping) and arm.schema.get("type") == "object":
                closest = tried if closest is None or len(tried) < len(closest) else closest
        if closest is None:
            return _misfit(value, where, name, problems)
        problems.extend(closest)  # of objects, what is wrong with the one that was meant says more than that none fits
        return WRONG

    return Kind(name, {"anyOf": [dict(arm.schema) for arm in arms]}, read)


def _array(kind: Any, args: tuple[Any, ...], inside: tuple[Any, ...]) -> Kind:
    if kind is tuple and args and args[-1] is not Ellipsis:
        return _fixed_tuple(args, inside)
    item = kind_of(args[0] if args else Any, inside)
    collect, unique = _ARRAYS[kind], _ARRAYS[kind] in (set, frozenset)
    schema: dict[str, Any] = {"type": "array", "items": dict(item.schema)}
    if unique:
        schema["uniqueItems"] = True

    def read(value: Any, where: str, problems: Problems) -> Any:
        if not isinstance(value, list):
            return _misfit(value, where, "a list", problems)
        before = len(problems)
        found = [item.read(each, f"{where}[{index}]", problems) for index, each in enumerate(value)]
        if len(problems) > before:
            return WRONG
        try:
            return collect(found)
        except TypeError:  # a set of what cannot be hashed
            return _misfit(value, where, "a list of plain values", problems)

    return Kind("a list", schema, read)


def _fixed_tuple(args: tuple[Any, ...], inside: tuple[Any, ...]) -> Kind:
    items = [kind_of(arg, inside) for arg in args if arg != ()]
    schema = {
        "type": "array",
        "prefixItems": [dict(item.schema) for item in items],
        "minItems": len(items),
        "maxItems": len(items),
    }
    name = f"a list of {len(items)}"

    def read(value: Any, where: str, problems: Problems) -> Any:
        if not isinstance(value, list) or len(value) != len(items):
            return _misfit(value, where, name, problems)
        before = len(problems)
        found = tuple(
            item.read(each, f"{where}[{index}]", problems)
            for index, (item, each) in enumerate(zip(items, value, strict=True))
        )
        return WRONG if len(problems) > before else found

    return Kind(name, schema, read)


def _mapping(args: tuple[Any, ...], inside: tuple[Any, ...]) -> Kind:
    if args and args[0] is not str:
        raise UnsupportedType(f"keys of a JSON object are texts, not {_type_name(args[0])}")
    item = kind_of(args[1] if args else Any, inside)

    def read(value: Any, where: str, problems: Problems) -> Any:
        if not isinstance(value, Mapping):
            return _misfit(value, where, "an object", problems)
        before = len(problems)
        found = {key: item.read(each, f"{where}.{key}", problems) for key, each in value.items()}
        return WRONG if len(problems) > before else found

    return Kind("an object", {"type": "object", "additionalProperties": dict(item.schema)}, read)


def _record(annotation: Any, fields: list[Field], inside: tuple[Any, ...]) -> Kind:
    kind = object_kind("an object", fields, annotation, inside)

    def read(value: Any, where: str, problems: Problems) -> Any:
        try:
            return kind.read(value, where, problems)
        except (ValueError, TypeError) as error:  # a validator of the class
            problems.append(f"{where}: {error}")
            return WRONG

    return attrs.evolve(kind, read=read)


_SPECIAL: dict[Any, Callable[[tuple[Any, ...], tuple[Any, ...]], Kind]] = {
    typing.Annotated: _annotated,
    Literal: lambda args, _: _choice(args, args),
    Union: _union,
    types.UnionType: _union,
}


def _misfit(value: Any, where: str, name: str, problems: Problems) -> Any:
    problems.append(f"{where} must be {name}, not {_short(value)}")
    return WRONG


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)
