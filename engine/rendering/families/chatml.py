"""ChatML: `<|im_start|>role\\n...<|im_end|>\\n`, as SmolLM2 and Qwen 2.5 use it, and as later families build on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs

from engine.rendering.family import Conversation, Family, visible
from engine.rendering.grammar import NEWLINES, ONE_NEWLINE, AnswerGrammar, CallItems
from engine.rendering.messages import Message, Part, RenderError, Role, ToolCallPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import Call, ToolSpec, call_from_json, dump_json

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CALL = ("<tool_call>", "</tool_call>")


@attrs.define(eq=False, kw_only=True)
class ChatML(Family):
    """ChatML with tool calls as Qwen 2.5 writes them (Hermes' JSON between `<tool_call>` tags)."""

    default_system: str | None = None
    """Written where a conversation has no system message; None: nothing is."""
    controls: ClassVar[tuple[str, ...]] = (IM_START,)
    stops: ClassVar[tuple[str, ...]] = (IM_END,)

    @property
    def has_extension_property(self) -> bool:
        """Nothing of history is rewritten."""
        return True

    def open(self, out: Script, conversation: Conversation) -> int:
        """The system message with the tools in it."""
        leading = conversation.leading_system
        if conversation.tools:
            self._write_tools(out, conversation.tools, leading)
            return 0 if leading is None else 1
        if leading is None and self.default_system is not None:
            self._header(out, -1, "system")
            out.mark(-1, Kind.FRAME)
            out.text(self.default_system)
            self._end(out, newline=True)
        return 0

    def _write_tools(self, out: Script, tools: Sequence[ToolSpec], leading: Message | None) -> None:
        self._header(out, -1 if leading is None else 0, "system")
        if leading is not None:
            out.mark(0, Kind.OUTPUT)
            self.write_content(out, 0, leading.content)
            out.mark(0, Kind.FRAME)
            out.text("\n\n")
        elif self.default_system is not None:
            out.text(self.default_system + "\n\n")
        out.text("# Tools\n\nYou may call one or more functions to assist with the user query.\n\n")
        out.text("You are provided with function signatures within <tools></tools> XML tags:\n<tools>")
        for tool in tools:
            out.text("\n" + dump_json(tool.to_openai()))
        out.text("\n</tools>\n\nFor each function call, return a json object with function name and arguments within ")
        out.control(CALL[0])
        out.control(CALL[1])
        out.text(" XML tags:\n")
        out.control(CALL[0])
        out.text('\n{"name": <function-name>, "arguments": <args-json-object>}\n')
        out.control(CALL[1])
        self._end(out, newline=True)

    def _header(self, out: Script, index: int, role: str) -> None:
        out.mark(index, Kind.HEADER)
        out.control(IM_START)
        out.text(role + "\n")

    def _end(self, out: Script, *, newline: bool) -> None:
        out.control(IM_END)
        if newline:
            out.mark(-1, Kind.FRAME)
            out.text("\n")

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """A message of any role."""
        message = conversation.messages[index]
        if message.role == "tool":
            self._write_result(out, conversation, index)
            return
        self._header(out, index, message.role)
        if message.role == "assistant":
            self.write_answer(out, conversation, index)
        else:
            out.mark(index, Kind.OUTPUT)
            self.write_content(out, index, message.content)
        self._end(out, newline=True)

    def write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        """What an assistant says, without header and stop."""
        message = conversation.messages[index]
        if message.thinking is not None:
            raise RenderError(f"message {index} (assistant): renderer {self.name!r} has no place for thinking")
        self.begin_output(out, conversation, index)
        said = visible(message.content)
        self.write_content(out, index, said)
        self.write_calls(out, message.tool_calls, first_newline=bool(said))

    def write_calls(self, out: Script, calls: Sequence[ToolCallPart], *, first_newline: bool) -> None:
        """Calls as JSON between tags."""
        for n, call in enumerate(calls):
            if n or first_newline:
                out.text("\n")
            out.control(CALL[0])
            out.text(f'\n{{"name": "{call.name}", "arguments": {dump_json(call.arguments)}}}\n')
            out.control(CALL[1])

    def _write_result(self, out: Script, conversation: Conversation, index: int) -> None:
        """Results that follow one another share one user message."""
        if conversation.role_before(index) != "tool":
            out.mark(index, Kind.HEADER)
            out.control(IM_START)
            out.text("user")
        out.mark(index, Kind.OUTPUT)
        out.text("\n")
        out.control("<tool_response>")
        out.text("\n")
        self.write_content(out, index, conversation.messages[index].content)
        out.text("\n")
        out.control("</tool_response>")
        if conversation.role_after(index) != "tool":
            self._end(out, newline=True)

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """The header of the next message."""
        self._header(out, len(conversation.messages), role)

    def close_answer(self, out: Script, *, last_token: int, ended: bool, next_role: str | None) -> None:
        """A newline stands behind `<|im_end|>`."""
        Family.close_answer(self, out, last_token=last_token, ended=ended, next_role=next_role)
        out.text("\n")

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Text, then calls."""
        return AnswerGrammar(
            stops=self.stops,
            calls=CALL,
            read_calls=read_json_call,
            text_trail_before_calls=ONE_NEWLINE,
            thinking_lead=NEWLINES,
            thinking_trail=NEWLINES,
        )


def read_json_call(items: CallItems) -> Sequence[Part]:
    """The call in the body of one pair of tags."""
    body = "".join(item if isinstance(item, str) else item.name for item in items)
    call: Call = call_from_json(body)
    return (call,)
