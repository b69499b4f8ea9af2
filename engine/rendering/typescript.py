"""JSON schemas as TypeScript types, in the two dialects that models are shown: Harmony's (gpt-oss) and Kimi's (K2.5 and later).

Both are fixed by what the models were trained on, so oddities (`object | object`, a missing line break) are kept on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.rendering.messages import RenderError
from engine.rendering.tools import ToolSpec, dump_json

Schema = Mapping[str, Any]

# Harmony.


def harmony_declarations(tools: Sequence[ToolSpec]) -> str:
    """The `functions` namespace of a developer message."""
    written = ["# Tools\n\n## functions\n\nnamespace functions {\n\n"]
    for tool in tools:
        properties = tool.parameters.get("properties") or {}
        written.append(f"// {tool.description}\ntype {tool.name} = ")
        if not properties:
            written.append("() => any;\n\n")
            continue
        required = tool.parameters.get("required") or []
        fields = [_harmony_field(name, schema, name in required) for name, schema in properties.items()]
        written.append("(_: {\n" + "".join(fields) + "}) => any;\n\n")
    return "".join([*written, "} // namespace functions"])


def _harmony_field(name: str, schema: Schema, required: bool) -> str:
    comment = f"// {schema['description']}\n" if schema.get("description") else ""
    default = ""
    if "default" in schema:
        before = "" if schema.get("oneOf") and not schema.get("enum") else ", "
        value = schema["default"] if schema.get("enum") or schema.get("oneOf") else dump_json(schema["default"])
        default = f"{before}// default: {value}"
    return f"{comment}{name}{'' if required else '?'}: {harmony_type(schema)}{default},\n"


_HARMONY_NAMES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def harmony_type(schema: Schema) -> str:  # noqa: PLR0911 - one case a line
    """A type in Harmony's dialect."""
    kind = schema.get("type")
    if kind == "array":
        return _harmony_array(schema)
    if isinstance(kind, list) and kind:
        return " | ".join(kind)
    if schema.get("oneOf"):
        return _harmony_one_of(schema["oneOf"])
    if kind == "string" and schema.get("enum"):
        return '"' + '" | "'.join(map(str, schema["enum"])) + '"'
    if kind == "string":
        return "string | null" if schema.get("nullable") else "string"
    if kind == "object" and schema.get("properties"):
        required = schema.get("required") or []
        # The line break and its sixteen spaces are those of the official template's source.
        gap = ": \n" + " " * 16
        pairs = schema["properties"].items()
        fields = [f"{name}{'' if name in required else '?'}{gap}{harmony_type(inner)}" for name, inner in pairs]
        return "{\n" + ", ".join(fields) + "}"
    if kind == "object":
        return "object"
    return _HARMONY_NAMES.get(kind, "any") if isinstance(kind, str) else "any"


def _harmony_array(schema: Schema) -> str:
    items = schema.get("items")
    after = " | null" if schema.get("nullable") else ""
    if not items:
        return "any[]" + after
    if items.get("type") in _HARMONY_NAMES:
        return _HARMONY_NAMES[items["type"]] + "[]" + after
    inner = harmony_type(items)
    return ("any[]" if inner == "object | object" or len(inner) > 50 else inner + "[]") + after


def _harmony_one_of(variants: Sequence[Schema]) -> str:
    written = []
    for n, variant in enumerate(variants):
        text = harmony_type(variant)
        text += f"// {variant['description']}" if variant.get("description") else ""
        text += f"// default: {dump_json(variant['default'])}" if "default" in variant else ""
        written.append(text + (" | \n" if n < len(variants) - 1 else ""))
    return "".join(written)


# Kimi.

_CONSTRAINTS: Mapping[str, Sequence[str]] = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_KIMI_UNION = {"integer": "number", "object": "{}", "array": "Array<any>"}
_STEP = "  "


def kimi_declarations(tools: Sequence[ToolSpec]) -> str:
    """The text of a `tool_declare` message."""
    functions = "\n".join(_kimi_function(tool) for tool in tools)
    return f"# Tools\n\n## functions\nnamespace functions {{\n{functions}\n}}\n"


def _kimi_function(tool: ToolSpec) -> str:
    found = _Definitions()
    parameters = dict(tool.parameters)
    written = _kimi_object(parameters, "", found)
    lines: list[str] = []
    if found.to_root:
        written_fields = ",\n".join(_kimi_fields(parameters, _STEP, found, in_order=False))
        lines.append("interface parameters {" + (f"\n{written_fields}\n" if written_fields else "") + "}")
    for name, schema in found.schemas.items():
        text = _kimi_type(schema, "", found)
        about = schema.get("description")
        lines.append((_comment(about, "") + "\n" if about else "") + f"interface {name} {text}")
    if tool.description:
        lines.append(_comment(tool.description, ""))
    lines.append(f"type {tool.name} = (_: {'parameters' if found.to_root else written}) => any;")
    return "\n".join(lines)


class _Definitions:
    """What `$ref` may point at."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}
        self.to_root = False

    def name(self, reference: str) -> str:
        if reference == "#":
            self.to_root = True
            return "parameters"
        name = reference.rpartition("/")[2]
        if not reference.startswith("#/$defs/") or name not in self.schemas:
            raise RenderError(f"a tool's schema refers to {reference!r}, which is not in its $defs")
        return name


def _comment(text: str, indent: str) -> str:
    return "\n".join(f"{indent}// {line}" if line else "" for line in text.split("\n"))


def _docstring(schema: Any, indent: str) -> str:
    if not isinstance(schema, Mapping):
        return ""
    lines = [_comment(schema["description"], indent)] if schema.get("description") else []
    kind = schema.get("type")
    plain = "$ref" not in schema and "anyOf" not in schema and "enum" not in schema
    known = _CONSTRAINTS.get(kind, ()) if isinstance(kind, str) and plain else ()
    said = ", ".join(f"{key}: {schema[key]}" for key in known if key in schema)
    if said:
        lines.append(f"{indent}// {said}")
    return "".join(line + "\n" for line in lines)


def _kimi_type(schema: Any, indent: str, found: _Definitions) -> str:  # noqa: PLR0911 - one case a line
    if isinstance(schema, bool) or not schema:
        return "null" if schema is False else "any"
    if "$ref" in schema:
        return found.name(schema["$ref"])
    if "anyOf" in schema:
        return " | ".join(_kimi_type(inner, indent, found) for inner in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_KIMI_UNION.get(str(name), str(name)) for name in kind)
    if kind == "object":
        return _kimi_object(schema, indent, found)
    if kind == "array":
        items = schema.get("items") or {}
        about = _docstring(items, indent + _STEP)
        if about:
            return f"Array<\n{about}{indent}{_STEP}{_kimi_type(items, indent + _STEP, found)}\n{indent}>"
        return f"Array<{_kimi_type(items, indent, found)}>"
    if kind is None:
        raise RenderError(f"a tool's schema names no type: {dump_json(dict(schema))[:200]}")
    return "number" if kind == "integer" else str(kind)


def _kimi_object(schema: Schema, indent: str, found: _Definitions) -> str:
    found.schemas.update(schema.get("$defs") or {})
    fields = _kimi_fields(schema, indent + _STEP, found, in_order=True)
    more = schema.get("additionalProperties")
    if more is not None:
        kind = "any" if more is True else "never" if more is False else _kimi_type(more, indent + _STEP, found)
        fields.append(f"{indent}{_STEP}[k: string]: {kind}")
    return "{\n" + ",\n".join(fields) + f"\n{indent}}}" if fields else "{}"


def _kimi_fields(schema: Schema, indent: str, found: _Definitions, *, in_order: bool) -> list[str]:
    """Required fields first, each group by name; as they come for an interface that refers to itself."""
    required = set(schema.get("required") or ())
    properties: Mapping[str, Any] = schema.get("properties") or {}
    names = sorted(properties, key=lambda name: (name not in required, name)) if in_order else list(properties)
    written = []
    for name in names:
        inner = properties[name]
        about = _docstring(inner, indent)
        default = inner.get("default") if isinstance(inner, Mapping) else None
        if default is not None:
            shown = repr(default) if isinstance(default, (int, float)) else dump_json(default)
            about += f"{indent}// Default: {shown}\n"
        written.append(f"{about}{indent}{name}{'' if name in required else '?'}: {_kimi_type(inner, indent, found)}")
    return written
