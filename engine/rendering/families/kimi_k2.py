"""Kimi K2 and later: roles between control tokens, a section of tool calls with ids, tools declared before everything else.

K2 (Thinking) and K2 Instruct write a default system message; K2.5 and later do not, and declare tools as TypeScript. Reasoning is kept from the last
answer without tool calls on, and dropped before, where `<think></think>` remains; `keep_thinking` keeps all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import attrs

from engine.rendering.families.deepseekv3 import read_section
from engine.rendering.family import Conversation, Family, answered_call, visible
from engine.rendering.grammar import AnswerGrammar, CallItems
from engine.rendering.images import image_chunk, image_size, kimi_tokens
from engine.rendering.messages import (
    ImagePart,
    Part,
    RenderError,
    Role,
    ToolCallPart,
    ToolResultPart,
)
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_with_arguments, dump_json
from engine.rendering.typescript import kimi_declarations

IM_END, MIDDLE = "<|im_end|>", "<|im_middle|>"
ROLE = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}
SYSTEM = "<|im_system|>"
SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
CALL_BEGIN, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
THINK = ("<think>", "</think>")
DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."


@attrs.define(eq=False, kw_only=True)
class Kimi(Family):
    """Kimi K2. `thinking`: "hybrid" opens its own block (K2 Thinking), "prefilled" and "disabled" find it (K2.5), "none" has none (K2 Instruct)."""

    thinking: Literal["hybrid", "prefilled", "disabled", "none"] = "hybrid"
    keep_thinking: bool = False
    default_system: str | None = DEFAULT_SYSTEM
    typescript_tools: bool = False
    vision: bool = False
    controls: ClassVar[tuple[str, ...]] = (SYSTEM, *ROLE.values(), MIDDLE, *SECTION, CALL_BEGIN, ARGUMENTS, CALL_END)
    stops: ClassVar[tuple[str, ...]] = (IM_END,)
    image_controls: ClassVar[tuple[str, ...]] = ("<|media_begin|>", "<|media_content|>", "<|media_end|>")

    @property
    def has_extension_property(self) -> bool:
        """Where no reasoning is dropped."""
        return self.keep_thinking or self.thinking in ("disabled", "none")

    def open(self, out: Script, conversation: Conversation) -> int:
        """Tools, then the default system message where there is none."""
        if conversation.tools:
            self._header(out, -1, SYSTEM, "tool_declare")
            out.mark(-1, Kind.FRAME)
            out.text(self._declarations(conversation.tools))
            out.control(IM_END)
        if conversation.leading_system is None and self.default_system is not None:
            self._header(out, -1, SYSTEM, "system")
            out.mark(-1, Kind.FRAME)
            out.text(self.default_system)
            out.control(IM_END)
            out.text("\n" if self.thinking == "none" else "")  # so has the template of K2 Instruct, and it alone
        return 0

    def _declarations(self, tools: Sequence[ToolSpec]) -> str:
        if self.typescript_tools:
            return kimi_declarations(tools)
        return dump_json([_sorted(tool.to_openai()) for tool in tools], separators=(",", ":"))

    def _header(self, out: Script, index: int, control: str, name: str) -> None:
        out.mark(index, Kind.HEADER)
        out.control(control)
        out.text(name)
        out.control(MIDDLE)

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """A message of any role. A tool speaks under its name."""
        message = conversation.messages[index]
        name: str = message.role
        if message.role == "tool":
            result = next((part for part in message.content if isinstance(part, ToolResultPart)), None)
            name = (result.name if result is not None else None) or "tool"
        self._header(out, index, ROLE.get(message.role, SYSTEM), name)
        if message.role == "assistant":
            self._write_answer(out, conversation, index)
        else:
            out.mark(index, Kind.OUTPUT)
            if message.role == "tool":
                out.text(f"## Return of {_call_id(conversation, index)}\n")
            self.write_content(out, index, message.content)
        out.control(IM_END)

    def _write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        message = conversation.messages[index]
        if self.thinking == "none":
            if message.thinking is not None:
                raise RenderError(f"message {index} (assistant): renderer {self.name!r} has no place for thinking")
            self.begin_output(out, conversation, index)
        else:
            kept = self.thinking != "disabled" and (self.keep_thinking or index > self._last_dropped(conversation))
            self._write_thinking(out, conversation, index, (message.thinking or "") if kept else "")
        self.write_content(out, index, visible(message.content))
        if message.tool_calls:
            first = sum(len(earlier.tool_calls) for earlier in conversation.messages[:index])
            self._write_calls(out, message.tool_calls, first)

    def _write_thinking(self, out: Script, conversation: Conversation, index: int, reasoning: str) -> None:
        if self.thinking == "hybrid":
            self.begin_output(out, conversation, index)
        else:
            out.mark(index, Kind.PREFILL)
        out.control(THINK[0])
        if self.thinking == "prefilled":
            self.begin_output(out, conversation, index)
        out.text(reasoning)
        out.control(THINK[1])
        if self.thinking == "disabled":
            self.begin_output(out, conversation, index)

    def _last_dropped(self, conversation: Conversation) -> int:
        """Index of the last answer without tool calls; what is trained now is not yet history."""
        end = len(conversation.messages) - (0 if conversation.generating else 1)
        answers = (
            n
            for n in range(end - 1, -1, -1)
            if conversation.messages[n].role == "assistant" and not conversation.messages[n].tool_calls
        )
        return next(answers, -1)

    def _write_calls(self, out: Script, calls: Sequence[ToolCallPart], first: int) -> None:
        out.control(SECTION[0])
        for n, call in enumerate(calls):
            out.control(CALL_BEGIN)
            out.text(call.id or f"functions.{call.name}:{first + n}")
            out.control(ARGUMENTS)
            out.text(dump_json(call.arguments))
            out.control(CALL_END)
        out.control(SECTION[1])

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """The header, and the block where the variant prefills it."""
        index = len(conversation.messages)
        self._header(out, index, ROLE.get(role, SYSTEM), role)
        if role == "assistant" and self.thinking in ("prefilled", "disabled"):
            out.mark(index, Kind.PREFILL)
            out.control(THINK[0])
            if self.thinking == "disabled":
                out.control(THINK[1])

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Thinking, text, a section of calls."""
        return AnswerGrammar(
            stops=self.stops,
            think=THINK if self.thinking in ("hybrid", "prefilled") else None,
            starts_thinking=self.thinking == "prefilled",
            calls=SECTION,
            inside_calls=(CALL_BEGIN, ARGUMENTS, CALL_END),
            read_calls=read_calls,
        )

    def write_image(self, out: Script, index: int, image: ImagePart) -> None:
        """`<|media_begin|>image<|media_content|>`, as many positions as the image takes, `<|media_end|>`."""
        if not self.vision:
            Family.write_image(self, out, index, image)
        begin, content, end = self.image_controls
        out.control(begin)
        out.text("image")
        out.control(content)
        out.image(image_chunk(image, kimi_tokens(*image_size(image))))
        out.control(end)


def _sorted(value: Any) -> Any:
    """Keys in order at every depth, as the family's tokenizer declares tools."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _call_id(conversation: Conversation, index: int) -> str:
    """The id a result answers to: its own, that of the call at its place, or one by the place alone."""
    name, call_id = answered_call(conversation.messages, index)
    if call_id is not None:
        return call_id
    answered = sum(message.role == "tool" for message in conversation.messages[:index])
    return f"functions.{name or 'unknown'}:{answered}"


def read_calls(items: CallItems) -> Sequence[Part]:
    """The calls of a section. The name stands in the id: `functions.name:0`."""

    def call(call_id: str, arguments: str, written: str) -> Part:
        name = call_id.removeprefix("functions.").rpartition(":")[0] or call_id
        return call_with_arguments(name, arguments, written, call_id)

    return read_section(items, CALL_BEGIN, CALL_END, call)
