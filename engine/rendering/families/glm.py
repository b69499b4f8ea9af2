"""GLM 4.5 and later: one control token a role, `<think>` in every answer, tool calls as pairs of keys and values.

An answer ends where the next role would begin: the model samples `<|user|>`, or `<|observation|>` behind a tool call, and the next message's header is
that very token. GLM 4.5 and 4.6 write newlines between the parts, later ones do not; GLM 5 says in a system message how much effort is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs

from engine.rendering.families.qwen3_5 import trimmed
from engine.rendering.family import Conversation, Family, visible
from engine.rendering.grammar import NOTHING, WHITESPACE, AnswerGrammar, CallItems
from engine.rendering.lexing import Control
from engine.rendering.messages import Part, Role, ToolCallPart, UnparsedToolCallPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, argument_types, dump_json, plain_argument, typed_argument

USER, OBSERVATION, ASSISTANT, SYSTEM = "<|user|>", "<|observation|>", "<|assistant|>", "<|system|>"
THINK, CALL = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")
KEY, VALUE = ("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>")
RESPONSE = ("<tool_response>", "</tool_response>")


@attrs.define(eq=False, kw_only=True)
class Glm(Family):
    """GLM. `newlines`: 4.5 and 4.6. `thinking`: "hybrid" opens its own block (4.5, 4.6), "prefilled" finds it opened, "disabled" empty."""

    thinking: Literal["hybrid", "prefilled", "disabled"] = "prefilled"
    newlines: bool = False
    keep_thinking: bool = False
    effort: str | None = None
    """`Low`, `High` or `Max` in a system message of its own (5); None: the version has none."""
    open_in_history: bool = False
    """An answer without a thought is `<think></think>` (4.5, 4.6, 5) or, in 4.7, `</think>` alone."""
    whole_declarations: bool = True
    """Tools are declared with `type` and `function` around them (4.x), or the function alone (5)."""
    controls: ClassVar[tuple[str, ...]] = (
        "[gMASK]",
        "<sop>",
        USER,
        OBSERVATION,
        ASSISTANT,
        SYSTEM,
        *THINK,
        *CALL,
        *KEY,
        *VALUE,
    )
    stops: ClassVar[tuple[str, ...]] = (USER, OBSERVATION, "<|endoftext|>")

    @property
    def has_extension_property(self) -> bool:
        """Where thinking stays in history, or there is none."""
        return self.keep_thinking

    @property
    def _line(self) -> str:
        return "\n" if self.newlines else ""

    def open(self, out: Script, conversation: Conversation) -> int:
        """The prefix, the effort, the tools."""
        out.control("[gMASK]")
        out.control("<sop>")
        if self.effort is not None:
            out.control(SYSTEM)
            out.text(f"Reasoning Effort: {self.effort}")
        if conversation.tools:
            out.control(SYSTEM)
            self._write_tools(out, conversation.tools)
        return 0

    def _write_tools(self, out: Script, tools: Sequence[ToolSpec]) -> None:
        out.text("\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n")
        out.text("You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n")
        for tool in tools:
            declaration = tool.to_openai()
            out.text(dump_json(declaration if self.whole_declarations else declaration["function"]) + "\n")
        out.text(
            "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
        )
        out.control(CALL[0])
        out.text("{function-name}" + self._line)
        for n in ("1", "2"):
            self._pair(out, "{arg-key-" + n + "}", "{arg-value-" + n + "}")
        out.text("..." + self._line)
        out.control(CALL[1])

    def _pair(self, out: Script, key: str, value: str) -> None:
        out.control(KEY[0])
        out.text(key)
        out.control(KEY[1])
        out.text(self._line)
        out.control(VALUE[0])
        out.text(value)
        out.control(VALUE[1])
        out.text(self._line)

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """A message of any role."""
        message = conversation.messages[index]
        if message.role == "assistant":
            self._write_answer(out, conversation, index)
            return
        self._write_role(out, conversation, index)
        out.mark(index, Kind.OUTPUT)
        out.text(self._line)
        if message.role == "tool":
            out.control(RESPONSE[0])
            out.text(self._line)
            self.write_content(out, index, message.content)
            out.text(self._line)
            out.control(RESPONSE[1])
        else:
            self.write_content(out, index, message.content)
            if (
                message.role == "user"
                and self.newlines
                and self.thinking == "disabled"
                and not message.text.endswith("/nothink")
            ):
                out.control("/nothink")

    def _write_role(self, out: Script, conversation: Conversation, index: int) -> None:
        """The role's token, which behind an answer is the stop of that answer and was written with it."""
        message = conversation.messages[index]
        before = conversation.role_before(index)
        if message.role == "tool" and before == "tool":
            return
        if before == "assistant" and message.role in ("user", "tool"):
            return
        out.mark(index, Kind.HEADER)
        out.control({"user": USER, "tool": OBSERVATION}.get(message.role, SYSTEM))

    def _write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        message = conversation.messages[index]
        out.mark(index, Kind.HEADER)
        out.control(ASSISTANT)
        trains = conversation.is_last(index) and not conversation.generating
        kept = self.thinking != "disabled" and (self.keep_thinking or index > conversation.last_user)
        reasoning = (message.thinking or "").strip() if kept else ""
        out.mark(index, Kind.PREFILL)
        if self.thinking == "hybrid":
            self.begin_output(out, conversation, index)
        out.text(self._line)
        opened = (
            reasoning
            or self.open_in_history
            or (trains and self.thinking != "disabled")
            or (self.keep_thinking and self.thinking == "prefilled")
        )
        if opened:
            out.control(THINK[0])
        if self.thinking == "prefilled":
            self.begin_output(out, conversation, index)
        out.text(reasoning)
        out.control(THINK[1])
        if self.thinking == "disabled":
            self.begin_output(out, conversation, index)
        out.mark(index, Kind.OUTPUT)
        said = trimmed(visible(message.content))
        out.text(self._line if said else "")
        self.write_content(out, index, said)
        for call in message.tool_calls:
            self._write_call(out, call)
        self._write_stop(out, conversation, index)

    def _write_stop(self, out: Script, conversation: Conversation, index: int) -> None:
        after = conversation.role_after(index)
        if after == "tool" or (
            after is None and conversation.messages[index].tool_calls and not conversation.generating
        ):
            out.control(OBSERVATION)
        elif after == "user" or (after is None and not conversation.generating):
            out.control(USER)

    def close_answer(self, out: Script, *, last_token: int, ended: bool, next_role: str | None) -> None:
        """The next role's token, where the model has not sampled that very one."""
        wanted = {"user": USER, "tool": OBSERVATION}.get(next_role or "")
        if wanted is not None and last_token != self.vocabulary.special_token(wanted):
            out.control(wanted)

    def _write_call(self, out: Script, call: ToolCallPart) -> None:
        out.text(self._line)
        out.control(CALL[0])
        out.text(call.name + self._line)
        for key, value in call.arguments.items():
            self._pair(out, key, plain_argument(value))
        out.control(CALL[1])

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """The role's token, and the block where the version prefills it."""
        index = len(conversation.messages)
        out.mark(index, Kind.HEADER)
        if role != "assistant":
            out.control({"user": USER, "tool": OBSERVATION}.get(role, SYSTEM))
            return
        out.control(ASSISTANT)
        out.mark(index, Kind.PREFILL)
        if self.thinking == "prefilled":
            out.control(THINK[0])
        elif self.thinking == "disabled":
            out.text(self._line)
            if self.newlines or self.open_in_history:
                out.control(THINK[0])
            out.control(THINK[1])

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Thinking, text, calls; ended by the next role."""
        return AnswerGrammar(
            stops=self.stops,
            think=THINK if self.thinking != "disabled" else None,
            starts_thinking=self.thinking == "prefilled",
            calls=CALL,
            inside_calls=(*KEY, *VALUE),
            read_calls=lambda items: (read_call(items, tools),),
            thinking_lead=WHITESPACE,
            thinking_trail=WHITESPACE,
            text_lead=WHITESPACE,
            text_lead_after_thinking=WHITESPACE,
            text_trail=WHITESPACE,
            text_trail_before_calls=WHITESPACE if self.newlines else NOTHING,
        )


def read_call(items: CallItems, tools: Sequence[ToolSpec]) -> Part:
    """A call: its name, then keys and values between their tags."""
    written = "".join(item if isinstance(item, str) else item.name for item in items)
    first = next((n for n, item in enumerate(items) if isinstance(item, Control)), len(items))
    name = "".join(item for item in items[:first] if isinstance(item, str)).strip()
    if not name:
        return UnparsedToolCallPart(written, "the call names no tool")
    types = argument_types(name, tools)
    arguments: dict[str, object] = {}
    key: str | None = None
    at = first
    while at < len(items):
        item = items[at]
        if isinstance(item, str):
            if item.strip() and item.strip() != "":
                return UnparsedToolCallPart(written, f"text between arguments: {item.strip()[:80]!r}")
            at += 1
            continue
        close = KEY[1] if item.name == KEY[0] else VALUE[1] if item.name == VALUE[0] else None
        end = (
            next((n for n in range(at + 1, len(items)) if items[n] == Control(close)), None)
            if close is not None
            else None
        )
        if close is None or end is None or (item.name == VALUE[0]) != (key is not None):
            return UnparsedToolCallPart(written, f"{item.name} where none belongs, or never closed")
        text = "".join(inner if isinstance(inner, str) else inner.name for inner in items[at + 1 : end])
        if key is None:
            key = text
        else:
            arguments[key] = typed_argument(text, types.get(key))
            key = None
        at = end + 1
    if key is not None:
        return UnparsedToolCallPart(written, f"the argument {key!r} has no value")
    return ToolCallPart(name, arguments)
