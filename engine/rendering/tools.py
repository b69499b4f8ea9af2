"""Tool calling, for all families: declarations, and the formats in which models write calls.

A format turns calls into text and text into calls. It never raises on what a model wrote: what cannot be read as a call comes back
as an `UnparsedToolCallPart` that says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from engine.rendering.messages import ToolCallPart, UnparsedToolCallPart

Call = ToolCallPart | UnparsedToolCallPart


@attrs.frozen
class ToolSpec:
    """A tool as a model is told of it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = attrs.field(factory=lambda: {"type": "object", "properties": {}})
    """JSON schema of the arguments object."""
    declared: Mapping[str, Any] | None = attrs.field(default=None, eq=False, repr=False)
    """The OpenAI-style declaration it was made from: key order and additional fields are shown to the model as they were given."""

    @classmethod
    def from_openai(cls, declaration: Mapping[str, Any]) -> ToolSpec:
        """From `{"type": "function", "function": {...}}`, or the inner mapping alone."""
        inner = declaration.get("function", declaration)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ValueError(f"a tool declaration needs function.name: {json.dumps(declaration, default=str)[:200]}")
        whole = declaration if "function" in declaration else {"type": "function", "function": declaration}
        return cls(
            inner["name"],
            inner.get("description", ""),
            inner.get("parameters", {"type": "object", "properties": {}}),
            whole,
        )

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI-style declaration."""
        if self.declared is not None:
            return dict(self.declared)
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def argument_types(self) -> dict[str, str]:
        """JSON type of each argument, as far as the schema names one."""
        properties = self.parameters.get("properties")
        if not isinstance(properties, Mapping):
            return {}
        return {
            name: schema["type"]
            for name, schema in properties.items()
            if isinstance(schema, Mapping) and isinstance(schema.get("type"), str)
        }


def dump_json(value: Any, **options: Any) -> str:
    """JSON as Hugging Face's chat templates write it: letters of all alphabets as they are, a space after `,` and `:`."""
    return json.dumps(value, ensure_ascii=False, **options)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _without_surrogates(value: Any) -> Any:
    """A model may write half a surrogate pair, which no tokenizer can encode again."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if any("\ud800" <= c <= "\udfff" for c in value) else value
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def load_json(text: str) -> Any:
    """A JSON value that a model wrote. Raises ValueError, and nothing else, where it is none."""
    try:
        return _without_surrogates(json.loads(text, parse_constant=_no_constant))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def call_from_json(text: str, *, arguments_key: str = "arguments") -> Call:
    """A call written as `{"name": ..., "arguments": {...}}`."""
    try:
        value = load_json(text)
    except ValueError as error:
        return UnparsedToolCallPart(text, f"not JSON: {error}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return UnparsedToolCallPart(text, "a tool call is a JSON object with a name")
    return call_with_arguments(value["name"], value.get(arguments_key, {}), text)


def call_with_arguments(name: str, arguments: Any, text: str, id: str | None = None) -> Call:  # noqa: A002
    """A call of `name`; `arguments` is an object, or the JSON text of one. `text` is what the model wrote, for the failure."""
    if not name:
        return UnparsedToolCallPart(text, "the call names no tool")
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments)
        except ValueError as error:
            return UnparsedToolCallPart(text, f"arguments are not JSON: {error}")
    if not isinstance(arguments, dict):
        return UnparsedToolCallPart(text, "arguments are not a JSON object")
    return ToolCallPart(name, arguments, id)


_PYTHON_WORDS: Mapping[str, Any] = {"True": True, "False": False, "None": None}


def typed_argument(text: str, declared: str | None) -> Any:
    """An argument written without quotes: as the schema says; where it says nothing, JSON if it is any, else a string."""
    if declared == "string":
        return text
    if declared is not None and text in _PYTHON_WORDS:  # some templates write Python's words
        return _PYTHON_WORDS[text]
    try:
        return load_json(text)
    except ValueError:
        return text


_FUNCTION = re.compile(r"<function=([^>\n]*)>")
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>", re.DOTALL)


def call_from_xml(text: str, tools: Sequence[ToolSpec]) -> Call:
    """A call written as `<function=name><parameter=key>value</parameter></function>` (Qwen 3.5, Nemotron 3)."""
    found = _FUNCTION.search(text)
    if found is None or not found[1].strip():
        return UnparsedToolCallPart(text, "no <function=name> in the tool call")
    name, body = found[1].strip(), text[found.end() :]
    body = body[: body.rfind("</function>")] if "</function>" in body else body
    rest = _PARAMETER.sub("", body).strip()
    if rest:
        return UnparsedToolCallPart(text, f"text outside of parameters: {rest[:80]!r}")
    types = argument_types(name, tools)
    arguments = {key.strip(): typed_argument(value, types.get(key.strip())) for key, value in _PARAMETER.findall(body)}
    return ToolCallPart(name, arguments)


def argument_types(name: str, tools: Sequence[ToolSpec]) -> dict[str, str]:
    """JSON types of the arguments of the tool called `name`, where it is declared."""
    return next((tool.argument_types() for tool in tools if tool.name == name), {})


def plain_argument(value: Any) -> str:
    """An argument for a format without quotes: strings as they are, all else as JSON."""
    return value if isinstance(value, str) else dump_json(value)
