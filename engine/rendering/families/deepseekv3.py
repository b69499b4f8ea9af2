"""DeepSeek V3.1: system text without a role token, `<｜User｜>` and `<｜Assistant｜>`, tool calls in a section of control tokens.

An answer behind a tool's output has no header: the model goes on where the output ends. Thinking is dropped from history, where `</think>`
alone remains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import attrs

from engine.rendering.family import Conversation, Family, visible
from engine.rendering.grammar import AnswerGrammar, CallItems
from engine.rendering.lexing import Control
from engine.rendering.messages import Part, RenderError, Role, ToolCallPart, UnparsedToolCallPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_with_arguments, dump_json

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
CALL_BEGIN, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUT = ("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")
THINK = ("<think>", "</think>")

_TOOLS_TEXT = (
    "\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces\n"
)


@attrs.define(eq=False, kw_only=True)
class DeepSeekV3(Family):
    """DeepSeek V3.1. System messages, wherever they stand, are written at the start."""

    thinking: Literal["prefilled", "disabled"] = "disabled"
    controls: ClassVar[tuple[str, ...]] = (
        BOS,
        USER,
        ASSISTANT,
        *SECTION,
        CALL_BEGIN,
        SEPARATOR,
        CALL_END,
        *OUTPUT,
        *THINK,
    )
    stops: ClassVar[tuple[str, ...]] = (EOS,)

    @property
    def has_extension_property(self) -> bool:
        """Without thinking nothing is rewritten."""
        return self.thinking == "disabled"

    def check(self, conversation: Conversation) -> None:
        """There is no role for developers."""
        for index, message in enumerate(conversation.messages):
            if message.role == "developer":
                raise RenderError(
                    f"message {index} (developer): renderer {self.name!r} has no developer role; make it a system message"
                )

    def open(self, out: Script, conversation: Conversation) -> int:
        """Beginning of text, all system messages, the tools."""
        out.control(BOS)
        first = True
        for index, message in enumerate(conversation.messages):
            if message.role == "system":
                out.mark(index, Kind.OUTPUT)
                out.text("" if first else "\n\n")
                self.write_content(out, index, message.content)
                first = False
        out.mark(-1, Kind.FRAME)
        if conversation.tools:
            self._write_tools(out, conversation.tools)
        return 0

    def _write_tools(self, out: Script, tools: Sequence[ToolSpec]) -> None:
        out.text("\n\n## Tools\nYou have access to the following tools:\n")
        for tool in tools:
            out.text(
                f"\n### {tool.name}\nDescription: {tool.description}\n\nParameters: {dump_json(tool.parameters)}\n"
            )
        out.text("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n")
        out.control(SECTION[0])
        out.control(CALL_BEGIN)
        out.text("tool_call_name")
        out.control(SEPARATOR)
        out.text("tool_call_arguments")
        out.control(CALL_END)
        out.text("{{additional_tool_calls}}")
        out.control(SECTION[1])
        out.text("\n" + _TOOLS_TEXT)

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """A message of any role but system."""
        message = conversation.messages[index]
        if message.role == "user":
            out.mark(index, Kind.HEADER)
            out.control(USER)
            out.mark(index, Kind.OUTPUT)
            self.write_content(out, index, message.content)
        elif message.role == "tool":
            out.mark(index, Kind.HEADER)
            out.control(OUTPUT[0])
            out.mark(index, Kind.OUTPUT)
            self.write_content(out, index, message.content)
            out.control(OUTPUT[1])
        elif message.role == "assistant":
            self._write_answer(out, conversation, index)

    def _write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        message = conversation.messages[index]
        asked = _role_before(conversation, index) in ("user", None)
        reasons = self.thinking == "prefilled" and conversation.is_last(index) and not conversation.generating
        out.mark(index, Kind.HEADER)
        if asked:
            out.control(ASSISTANT)
            out.mark(index, Kind.PREFILL)
            out.control(THINK[0] if reasons else THINK[1])
        self.begin_output(out, conversation, index)
        if reasons and (asked or message.thinking):
            if not asked:
                out.control(THINK[0])
            out.text(message.thinking or "")
            out.control(THINK[1])
        self.write_content(out, index, visible(message.content))
        if message.tool_calls:
            self._write_calls(out, message.tool_calls)
        out.control(EOS)

    def _write_calls(self, out: Script, calls: Sequence[ToolCallPart]) -> None:
        out.control(SECTION[0])
        for call in calls:
            out.control(CALL_BEGIN)
            out.text(call.name)
            out.control(SEPARATOR)
            out.text(dump_json(call.arguments))
            out.control(CALL_END)
        out.control(SECTION[1])

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """A header behind a question; behind a tool's output the model goes on without one."""
        index = len(conversation.messages)
        out.mark(index, Kind.HEADER)
        if role == "user":
            out.control(USER)
        elif _role_before(conversation, index) in ("user", None):
            out.control(ASSISTANT)
            out.mark(index, Kind.PREFILL)
            out.control(THINK[0] if self.thinking == "prefilled" else THINK[1])

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Thinking, text, a section of calls. Behind a tool's output an answer may open its own thinking."""
        return AnswerGrammar(
            stops=self.stops,
            think=THINK if self.thinking == "prefilled" else None,
            starts_thinking=self.thinking == "prefilled" and not after_tool,
            calls=SECTION,
            inside_calls=(CALL_BEGIN, SEPARATOR, CALL_END),
            read_calls=read_calls,
        )


def _role_before(conversation: Conversation, index: int) -> str | None:
    """Role of the message before, system messages not counted: they are written elsewhere."""
    return next((message.role for message in reversed(conversation.messages[:index]) if message.role != "system"), None)


def read_section(items: CallItems, begin: str, end: str, call: Callable[[str, str, str], Part]) -> Sequence[Part]:
    """The calls between `begin` and `end` in a section; whatever stands outside of them is read as one, too.

    A control token divides each into what says its name, and its arguments: `call(head, arguments, written)` makes a part of the three texts.
    """
    bodies: list[list[str | Control]] = [[]]
    for item in items:
        if isinstance(item, Control) and item.name in (begin, end):
            bodies.append([])
        else:
            bodies[-1].append(item)
    found: list[Part] = []
    for body in bodies:
        written = _written(body)
        if not written.strip():
            continue
        at = next((n for n, item in enumerate(body) if isinstance(item, Control)), None)
        if at is None:
            found.append(UnparsedToolCallPart(written, "no arguments"))
        else:
            found.append(call(_written(body[:at]).strip(), _written(body[at + 1 :]), written))
    return found or [UnparsedToolCallPart("", "an empty section of tool calls")]


def _written(items: CallItems) -> str:
    return "".join(item if isinstance(item, str) else item.name for item in items)


def read_calls(items: CallItems) -> Sequence[Part]:
    """The calls of a section."""
    return read_section(items, CALL_BEGIN, CALL_END, call_with_arguments)
