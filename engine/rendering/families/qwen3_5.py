"""Qwen 3.5, 3.6 and 3.8: `<think>` opened by the generation prompt, XML tool calls, images; everything said is trimmed.

3.5 and 3.6 drop thinking from history and differ in one thing, how an argument that is no string is written. 3.8 keeps thinking, and says how
much of it is wanted in a sentence of the system message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs

from engine.rendering.families.chatml import CALL, ChatML
from engine.rendering.families.qwen3 import THINK, Qwen3, last_query
from engine.rendering.family import Conversation, visible
from engine.rendering.grammar import WHITESPACE, AnswerGrammar, CallItems
from engine.rendering.messages import Part, RenderError, TextPart, ToolCallPart, ToolResultPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_from_xml, dump_json

EFFORTS = {
    "xhigh": "Reasoning effort is set to xhigh. Please think carefully through the task, validate key assumptions, consider plausible "
    "alternatives, and prioritize correctness, consistency, and clarity in the final answer.",
    "medium": "",
    "low": "Reasoning effort is set to low. Keep your thinking brief and focused, moving directly to the conclusion without unnecessary "
    "elaboration.",
}

_BEFORE_EXAMPLE = "\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
_EXAMPLE = (
    "\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n<parameter=example_parameter_2>\n"
    "This is the value for the second parameter\nthat can span\nmultiple lines\n</parameter>\n</function>\n"
)
_IMPORTANT = (
    "\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within ",
    (
        " XML tags\n- Required parameters MUST be specified\n- You may provide optional reasoning for your function call in natural language BEFORE "
        "the function call, but NOT after\n- If there is no function call available, answer the question like normal with your current knowledge and "
        "do not tell the user about function calls\n</IMPORTANT>"
    ),
)


@attrs.define(eq=False, kw_only=True)
class Qwen35(Qwen3):
    """Qwen 3.5 and later."""

    thinking: Literal["hybrid", "prefilled", "disabled", "none"] = "prefilled"
    vision: bool = True
    keep_thinking: bool = False
    """Thinking stays in history (3.8, and 3.6 where it is asked to preserve it)."""
    effort: Literal["xhigh", "medium", "low"] | None = None
    """The sentence on effort that 3.8 has; None: the family has none."""
    python_words: bool = True
    """Arguments `true` and `null` are written as Python has them (3.5), else as JSON (3.6 and later)."""

    @property
    def has_extension_property(self) -> bool:
        """Where thinking stays in history."""
        return self.keep_thinking

    def keeps_thinking(self, conversation: Conversation, index: int) -> bool:
        """Written, even empty, wherever history does not drop it."""
        return self.keep_thinking or index > last_query(conversation)

    def check(self, conversation: Conversation) -> None:
        """The template refuses system messages elsewhere than at the start."""
        for index, message in enumerate(conversation.messages):
            if index and message.role == "system":
                raise RenderError(
                    f"message {index} (system): renderer {self.name!r} takes a system message at the start alone"
                )
            if message.role == "system" and message.images:
                raise RenderError(f"message {index} (system): a system message cannot hold images")

    def open(self, out: Script, conversation: Conversation) -> int:
        """Effort, tools, the system message: in that order, in one message."""
        leading = conversation.leading_system
        said = "" if leading is None else leading.text.strip()
        sentence = EFFORTS[self.effort] if self.effort is not None and self.thinking != "disabled" else ""
        first = 0 if leading is None else 1
        if not (conversation.tools or said or sentence or (leading is not None and self.effort is None)):
            return first
        self._header(out, first - 1, "system")
        out.mark(-1, Kind.FRAME)
        parts_before = bool(sentence)
        out.text(sentence)
        if conversation.tools:
            out.text("\n\n" if parts_before else "")
            write_xml_tools(out, ["\n" + dump_json(tool.to_openai()) for tool in conversation.tools])
            parts_before = True
        if said:
            out.text("\n\n" if parts_before else "")
        if leading is not None:
            out.mark(0, Kind.OUTPUT)
            out.text(said)
        self._end(out, newline=True)
        return first

    def write_content(self, out: Script, index: int, parts: Any) -> None:
        """Trimmed as a whole."""
        ChatML.write_content(self, out, index, trimmed(tuple(parts)))

    def write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        """Thinking where it is kept, content, calls."""
        message = conversation.messages[index]
        if self.keeps_thinking(conversation, index):
            self.write_thinking(
                out, conversation, index, "" if self.thinking == "disabled" else (message.thinking or "").strip()
            )
        else:
            self.begin_output(out, conversation, index)
        said = trimmed(visible(message.content))
        self.write_content(out, index, said)
        for n, call in enumerate(message.tool_calls):
            out.text("\n" if n else "\n\n" if said else "")
            self._write_call(out, call)

    def _write_call(self, out: Script, call: ToolCallPart) -> None:
        out.control(CALL[0])
        out.text(xml_call(call, python_words=self.python_words))
        out.control(CALL[1])

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Thinking, text, calls."""
        return AnswerGrammar(
            stops=self.stops,
            think=THINK if self.thinking != "disabled" else None,
            starts_thinking=self.thinking == "prefilled",
            calls=CALL,
            read_calls=lambda items: read_xml_call(items, tools),
            thinking_lead=WHITESPACE,
            thinking_trail=WHITESPACE,
            text_lead=WHITESPACE,
            text_lead_after_thinking=WHITESPACE,
            text_trail=WHITESPACE,
            text_trail_before_calls=WHITESPACE,
        )


def trimmed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Parts without whitespace at both ends of the whole, as a template trims what it has rendered."""
    said = list(parts)
    while said and isinstance(said[0], (TextPart, ToolResultPart)):
        text = said[0].text.lstrip()
        if text:
            said[0] = attrs.evolve(said[0], text=text)
            break
        del said[0]
    while said and isinstance(said[-1], (TextPart, ToolResultPart)):
        text = said[-1].text.rstrip()
        if text:
            said[-1] = attrs.evolve(said[-1], text=text)
            break
        del said[-1]
    return tuple(said)


def write_xml_tools(out: Script, declarations: Sequence[str]) -> None:
    """Declarations, and how to call. Control tokens in the instructions are those the template has there."""
    out.text("# Tools\n\nYou have access to the following functions:\n\n<tools>")
    for declaration in declarations:
        out.text(declaration)
    out.text("\n</tools>" + _BEFORE_EXAMPLE)
    out.control(CALL[0])
    out.text(_EXAMPLE)
    out.control(CALL[1])
    out.text(_IMPORTANT[0])
    out.control(CALL[0])
    out.control(CALL[1])
    out.text(_IMPORTANT[1])


def xml_call(call: ToolCallPart, *, python_words: bool) -> str:
    """What stands between `<tool_call>` and `</tool_call>`."""
    written = [f"\n<function={call.name}>\n"]
    for key, value in call.arguments.items():
        written.append(f"<parameter={key}>\n{_argument(value, python_words=python_words)}\n</parameter>\n")
    return "".join([*written, "</function>\n"])


def _argument(value: Any, *, python_words: bool) -> str:
    if isinstance(value, str):
        return value
    if python_words and not isinstance(value, (dict, list, tuple)):
        return str(value)
    return dump_json(value)


def read_xml_call(items: CallItems, tools: Sequence[ToolSpec]) -> Sequence[Part]:
    """The call in the body of one pair of tags."""
    return (call_from_xml("".join(item if isinstance(item, str) else item.name for item in items), tools),)
