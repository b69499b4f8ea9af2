"""A Python function as a tool: its signature and docstring say what a model is told, and what arguments are taken.

    @tool(seconds=2)
    async def weather(city: str, unit: Literal["C", "F"] = "C") -> str:
        \"\"\"The weather in a city.

        Args:
            city: name of the city, in English.
            unit: of the temperature.
        \"\"\"

`@tool` only notes options on the function, which stays what it was; a function without it is a tool with the usual ones.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, overload

import attrs

from engine.rendering.tools import ToolSpec
from envs.tools.fields import Field
from envs.tools.kinds import WRONG, Kind, UnsupportedType, object_kind

F = TypeVar("F", bound=Callable[..., Any])
Runs = Literal["loop", "thread", "process"]

_MARK = "__callsheet_tool__"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_positive: Any = attrs.validators.optional(attrs.validators.gt(0))


@attrs.frozen(kw_only=True)
class ToolOptions:
    """How a tool is presented and run. None: as its function has it, or as the toolbox's budget says."""

    name: str | None = None
    description: str | None = None
    runs: Runs | None = None
    """Where: on the event `loop` (async functions, and functions that take microseconds), in a `thread` (functions that wait), or in a worker `process` (functions
    that compute: only there the budget ends the work, not just the wait). None: async on the loop, others in a thread."""
    seconds: float | None = attrs.field(default=None, validator=_positive)
    """Most seconds of one call."""
    result_characters: int | None = attrs.field(default=None, validator=_positive)
    """Longest result; the rest is cut off, and the model is told."""


class WrongArguments(ValueError):
    """Arguments that do not fit the signature: each misfit in a sentence, in words for the model."""


@attrs.frozen
class Tool:
    """A tool that can be called."""

    spec: ToolSpec
    function: Callable[..., Any]
    options: ToolOptions
    runs: Runs
    parameters: Kind = attrs.field(repr=False)

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.spec.name

    def by_place(self, arguments: Mapping[str, Any]) -> list[Any]:
        """Arguments that were read, in the order of the signature, with its defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return [arguments.get(parameter.name, parameter.default) for parameter in parameters]

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's parameters have them. Raises WrongArguments."""
        problems: list[str] = []
        found: Any = self.parameters.read(arguments, "", problems)
        if found is WRONG:
            raise WrongArguments("; ".join(problems))
        return dict(found)


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    runs: Runs | None = None,
    seconds: float | None = None,
    result_characters: int | None = None,
) -> Callable[[F], F]: ...


def tool(function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
    """Marks a function or a method as a tool, with the fields of `ToolOptions`."""
    noted = ToolOptions(**options)

    def mark(function: F) -> F:
        setattr(function, _MARK, noted)
        return function

    return mark if function is None else mark(function)


def as_tool(function: Callable[..., Any] | Tool) -> Tool:
    """The tool that a function is. Raises TypeError, naming the function and the parameter, for a signature that JSON cannot fill."""
    if isinstance(function, Tool):
        return function
    options: ToolOptions = getattr(function, _MARK, ToolOptions())
    name = options.name or getattr(function, "__name__", None)
    if not name or not _NAME.fullmatch(name):
        raise TypeError(
            f"{function!r} needs a name of letters, digits, - and _ to be a tool, not {name!r}: @tool(name=...)"
        )
    described, parameters = _documentation(function)
    kind = _parameters(name, function, parameters)
    description = options.description if options.description is not None else described
    runs = options.runs or ("loop" if _is_async(function) else "thread")
    if _is_async(function) and runs != "loop":
        raise TypeError(f"tool {name!r} is async, so it runs on the event loop, not in a {runs}")
    if runs == "process":
        _check_sendable(name, function)
    return Tool(ToolSpec(name, description, kind.schema), function, options, runs, kind)


def tools_of(owner: object) -> list[Tool]:
    """The methods of an object that are marked with `@tool`, in the order of their definition, those of base classes first."""
    names: dict[str, None] = {}
    for cls in reversed(type(owner).__mro__):
        names.update(dict.fromkeys(name for name, value in vars(cls).items() if hasattr(value, _MARK)))
    return [as_tool(getattr(owner, name)) for name in names if hasattr(getattr(owner, name), _MARK)]


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _check_sendable(name: str, function: Callable[..., Any]) -> None:
    if inspect.ismethod(function) or "<" in getattr(function, "__qualname__", "<"):
        raise TypeError(
            f"tool {name!r} cannot run in a worker process, which would not find it by its name: take runs='thread', or a function at the top level of a module"
        )
    if any(each.kind is each.KEYWORD_ONLY for each in inspect.signature(function).parameters.values()):
        raise TypeError(
            f"tool {name!r} runs in a worker process, where parameters are passed by place: none may be keyword-only"
        )


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What the docstring says of the function, and of each parameter (in Google's, numpy's or Sphinx's way)."""
    text = inspect.getdoc(function)
    if not text:
        return "", {}
    from docstring_parser import parse

    parsed = parse(text)
    description = "\n\n".join(part for part in (parsed.short_description, parsed.long_description) if part)
    return description, {each.arg_name: " ".join((each.description or "").split()) for each in parsed.params}


def _parameters(name: str, function: Callable[..., Any], described: Mapping[str, str]) -> Kind:
    try:
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except NameError as error:
        raise TypeError(f"tool {name!r}: a type in its signature is not known where it is defined: {error}") from error
    fields = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"tool {name!r}, parameter {parameter.name!r}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{where}: a model fills parameters by name, so *{parameter.name} and / have no place")
        if parameter.name not in hints:
            raise TypeError(f"{where} has no type: a model has to be told what to write")
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        fields.append(
            Field(parameter.name, hints[parameter.name], required, default, described.get(parameter.name, ""))
        )
    unknown = sorted(described.keys() - {field.name for field in fields})
    if unknown:
        raise TypeError(f"tool {name!r}: its docstring describes {', '.join(unknown)}, which its signature lacks")
    try:
        return object_kind("an object", fields, dict)
    except UnsupportedType as error:
        raise TypeError(f"tool {name!r}, parameter {error}") from None
