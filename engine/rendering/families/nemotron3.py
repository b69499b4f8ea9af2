"""Nemotron 3: ChatML with a system message that is there even when empty, `<think></think>` in every answer, XML tool calls.

Ultra differs from Nano and Super in the newline behind `</think>`, and in what the wish for less effort is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs

from engine.rendering.families.chatml import CALL, IM_START, ChatML
from engine.rendering.families.qwen3 import THINK
from engine.rendering.families.qwen3_5 import read_xml_call, write_xml_tools, xml_call
from engine.rendering.family import Conversation, visible
from engine.rendering.grammar import NOTHING, ONE_NEWLINE, WHITESPACE, AnswerGrammar
from engine.rendering.messages import RenderError, Role
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, dump_json


@attrs.define(eq=False, kw_only=True)
class Nemotron3(ChatML):
    """Nemotron 3 Nano, Super and (`ultra`) Ultra."""

    thinking: Literal["prefilled", "disabled"] = "prefilled"
    keep_thinking: bool = False
    ultra: bool = False
    effort: str | None = None
    """Added to the last user message in braces: `low` (Super), `efficient` (Ultra's medium)."""
    controls: ClassVar[tuple[str, ...]] = (IM_START, *THINK, *CALL)

    @property
    def has_extension_property(self) -> bool:
        """Never claimed: an answer without a thought is written in another way than it is sampled."""
        return False

    @property
    def keeps_history(self) -> bool:
        """Sampled thinking stays where it was."""
        return self.keep_thinking or self.thinking == "disabled"

    def check(self, conversation: Conversation) -> None:
        """No images."""
        for index, message in enumerate(conversation.messages):
            if message.images:
                raise RenderError(f"message {index}: renderer {self.name!r} has no place for images")

    def open(self, out: Script, conversation: Conversation) -> int:
        """The system message, empty where there is none, with the tools."""
        leading = conversation.leading_system
        first = 0 if leading is None else 1
        self._header(out, first - 1, "system")
        out.mark(first - 1, Kind.OUTPUT if first else Kind.FRAME)
        if leading is not None:
            self.write_content(out, 0, leading.content)
        if conversation.tools:
            out.mark(-1, Kind.FRAME)
            out.text("\n\n" if leading is not None and leading.text else "")
            write_xml_tools(out, [_declaration(tool) for tool in conversation.tools])
        self._end(out, newline=True)
        return first

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """The last user message carries the wish for effort."""
        message = conversation.messages[index]
        if message.role == "user" and index == conversation.last_user and self.effort is not None:
            self._header(out, index, "user")
            out.mark(index, Kind.OUTPUT)
            self.write_content(out, index, message.content)
            out.mark(-1, Kind.FRAME)
            out.text(f"\n\n{{reasoning effort: {self.effort}}}")
            out.mark(index, Kind.OUTPUT)
            self._end(out, newline=True)
            return
        ChatML.write_message(self, out, conversation, index)

    def write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        """A block in every answer; what is trained begins as the generation prompt does."""
        message = conversation.messages[index]
        kept = self.keep_thinking or index >= conversation.last_user
        reasoning = (
            message.thinking
            if kept and self.thinking != "disabled" and message.thinking and message.thinking.strip()
            else None
        )
        newline = "" if self.ultra else "\n"
        out.mark(index, Kind.PREFILL)
        out.control(THINK[0])
        if conversation.is_last(index) and not conversation.generating and self.thinking == "prefilled":
            out.text("\n")
            self.begin_output(out, conversation, index)
            out.text("" if reasoning is None else reasoning + newline)
            after = newline
        elif reasoning is not None:
            out.text("\n")
            self.begin_output(out, conversation, index)
            out.text(reasoning + newline)
            after = newline
        else:
            # History without its thought keeps the newline that stood behind it.
            dropped = bool(message.thinking and message.thinking.strip()) and not kept and self.thinking != "disabled"
            after = newline if dropped and not (message.tool_calls and not self.ultra) else ""
        out.control(THINK[1])
        if self.thinking == "disabled" or reasoning is None:
            self.begin_output(out, conversation, index)
        self._write_said(out, conversation, index, after)

    def _write_said(self, out: Script, conversation: Conversation, index: int, after: str) -> None:
        message = conversation.messages[index]
        written = after + "".join([getattr(part, "text", "") for part in visible(message.content)])
        bare = (
            message.tool_calls
            and not after
            and not self.ultra
            and index < conversation.last_user
            and not self.keep_thinking
        )
        said = written.strip() if bare else written.rstrip()
        out.text(said)
        if message.tool_calls:
            out.text("\n")
        for call in message.tool_calls:
            out.control(CALL[0])
            out.text(xml_call(call, python_words=True))
            out.control(CALL[1])
            out.text("\n")

    def _write_result(self, out: Script, conversation: Conversation, index: int) -> None:
        """Results that follow one another share one user message."""
        if conversation.role_before(index) != "tool":
            self._header(out, index, "user")
        out.mark(index, Kind.OUTPUT)
        out.control("<tool_response>")
        out.text("\n")
        self.write_content(out, index, conversation.messages[index].content)
        out.text("\n")
        out.control("</tool_response>")
        out.text("\n")
        if conversation.role_after(index) != "tool":
            self._end(out, newline=True)

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """The header, and an open or an empty block."""
        self._header(out, len(conversation.messages), role)
        if role == "assistant":
            out.mark(len(conversation.messages), Kind.PREFILL)
            out.control(THINK[0])
            if self.thinking == "disabled":
                out.control(THINK[1])
            else:
                out.text("\n")

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Thinking, text, calls, each call followed by a newline."""
        return AnswerGrammar(
            stops=self.stops,
            think=THINK if self.thinking == "prefilled" else None,
            starts_thinking=self.thinking == "prefilled",
            calls=CALL,
            read_calls=lambda items: read_xml_call(items, tools),
            thinking_trail=NOTHING if self.ultra else ONE_NEWLINE,
            text_lead_after_thinking=NOTHING if self.ultra else ONE_NEWLINE,
            text_trail=WHITESPACE,
            text_trail_before_calls=WHITESPACE,
        )


def _declaration(tool: ToolSpec) -> str:
    """One tool as XML: known fields first, whatever else the declaration holds behind them."""
    function: Mapping[str, Any] = tool.to_openai()["function"]
    written = [f"\n<function>\n<name>{function['name']}</name>"]
    if "description" in function:
        written.append(f"\n<description>{str(function['description']).strip()}</description>")
    written.append("\n<parameters>")
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping):
        properties = parameters.get("properties")
        for name, fields in properties.items() if isinstance(properties, Mapping) else ():
            written.append(_parameter(name, fields))
        written.append(_others(parameters, ("type", "properties", "required")))
        if "required" in parameters:
            written.append(f"\n<required>{dump_json(parameters['required'])}</required>")
    written.append("\n</parameters>")
    written.append(_others(function, ("type", "name", "description", "parameters")))
    return "".join([*written, "\n</function>"])


def _parameter(name: str, fields: Mapping[str, Any]) -> str:
    written = [f"\n<parameter>\n<name>{name}</name>"]
    if "type" in fields:
        written.append(f"\n<type>{fields['type']}</type>")
    if "description" in fields:
        written.append(f"\n<description>{str(fields['description']).strip()}</description>")
    if "enum" in fields:
        written.append(f"\n<enum>{dump_json(fields['enum'])}</enum>")
    return "".join([*written, _others(fields, ("name", "type", "description", "enum")), "\n</parameter>"])


def _others(fields: Mapping[str, Any], known: Sequence[str]) -> str:
    written = []
    for key, value in fields.items():
        if key not in known:
            text = dump_json(value) if isinstance(value, (dict, list, tuple)) else str(value)
            written.append(f"\n<{key}>{text}</{key}>")
    return "".join(written)
