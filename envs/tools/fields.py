"""The named parts of an object: parameters of a function, fields of a class."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any, get_args, get_origin

import attrs


@attrs.frozen
class Field:
    """One named part of an object: a parameter of a function, or a field of a class."""

    name: str
    annotation: Any
    required: bool = True
    default: Any = None
    description: str = ""


def fields_of(annotation: Any) -> list[Field] | None:
    """The fields of an attrs class, a dataclass or a TypedDict; None for anything else."""
    if not inspect.isclass(annotation):
        return None
    if typing.is_typeddict(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        required: frozenset[str] = getattr(annotation, "__required_keys__", frozenset())
        # A hint that was a string when the class was made is not counted in __required_keys__ as what it says.
        return [
            Field(name, _bare(hint), get_origin(hint) is not typing.NotRequired and name in required)
            for name, hint in hints.items()
        ]
    if attrs.has(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        return [
            Field(
                each.alias or each.name,
                hints[each.name],
                each.default is attrs.NOTHING,
                _plain_default(each.default, attrs.Factory),
            )
            for each in attrs.fields(annotation)
            if each.init
        ]
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        return [
            Field(
                each.name,
                hints[each.name],
                each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING,
                None if each.default is dataclasses.MISSING else each.default,
            )
            for each in dataclasses.fields(annotation)
            if each.init
        ]
    return None


def _plain_default(default: Any, factory: Any) -> Any:
    return None if default is attrs.NOTHING or isinstance(default, factory) else default


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (typing.Required, typing.NotRequired) else hint
