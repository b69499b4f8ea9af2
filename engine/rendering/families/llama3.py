"""Llama 3: headers between `<|start_header_id|>` and `<|end_header_id|>`, everything trimmed, one JSON tool call that is the whole answer.

Llama 3.1 and 3.2 open every conversation with a system message that holds two dates; Llama 3 does not. `date` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs

from engine.rendering.families.qwen3_5 import trimmed
from engine.rendering.family import Conversation, Family, visible
from engine.rendering.grammar import WHITESPACE, AnswerGrammar
from engine.rendering.messages import Part, RenderError, Role, UnparsedToolCallPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_from_json, dump_json, load_json

_TOOLS_INTRODUCTION = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given prompt."
    '\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
)


@attrs.define(eq=False, kw_only=True)
class Llama3(Family):
    """Llama 3.x. Tools are declared in the first user message, as the official template does."""

    date: str | None = None
    """Written as `Today Date: ...` in the preamble of 3.1 and later (`26 Jul 2024` is the template's default); None: no preamble, as in 3.0."""
    controls: ClassVar[tuple[str, ...]] = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
    stops: ClassVar[tuple[str, ...]] = ("<|eot_id|>", "<|eom_id|>")

    @property
    def has_extension_property(self) -> bool:
        """Nothing of history is rewritten."""
        return True

    def check(self, conversation: Conversation) -> None:
        """One call an answer and no text beside it; tools want the preamble and a user's message."""
        messages = conversation.messages
        for index, message in enumerate(messages):
            if message.thinking is not None:
                raise RenderError(f"message {index} (assistant): renderer {self.name!r} has no place for thinking")
            if len(message.tool_calls) > 1:
                raise RenderError(
                    f"message {index} (assistant): Llama 3 makes one tool call at a time, not {len(message.tool_calls)}"
                )
            if message.tool_calls and message.text.strip():
                raise RenderError(
                    f"message {index} (assistant): Llama 3's tool call is the whole answer, so it cannot stand beside text"
                )
        first = 1 if conversation.leading_system is not None else 0
        if conversation.tools and (len(messages) <= first or messages[first].role != "user"):
            raise RenderError(
                f"message {first}: Llama 3 declares tools in the first user message, and this conversation does not begin with one"
            )

    def open(self, out: Script, conversation: Conversation) -> int:
        """Beginning of text, and the preamble with the system message in it."""
        out.control("<|begin_of_text|>")
        leading = conversation.leading_system
        if self.date is None and not conversation.tools:
            return 0
        self._header(out, -1 if leading is None else 0, "system")
        out.mark(-1, Kind.FRAME)
        if conversation.tools:
            out.text("Environment: ipython\n")
        out.text(f"Cutting Knowledge Date: December 2023\nToday Date: {self.date or '26 Jul 2024'}\n\n")
        if leading is not None:
            out.mark(0, Kind.OUTPUT)
            self.write_content(out, 0, trimmed(leading.content))
        out.control("<|eot_id|>")
        return 0 if leading is None else 1

    def _header(self, out: Script, index: int, role: str) -> None:
        out.mark(index, Kind.HEADER)
        out.control("<|start_header_id|>")
        out.text(role)
        out.control("<|end_header_id|>")
        out.text("\n\n")

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """A message of any role; a tool's answers as `ipython`, as a JSON string."""
        message = conversation.messages[index]
        self._header(out, index, "ipython" if message.role == "tool" else message.role)
        if (
            conversation.tools
            and message.role == "user"
            and not any(m.role == "user" for m in conversation.messages[:index])
        ):
            out.mark(-1, Kind.FRAME)
            out.text(_TOOLS_INTRODUCTION)
            for tool in conversation.tools:
                out.text(dump_json(tool.to_openai(), indent=4) + "\n\n")
        if message.role == "assistant":
            self.begin_output(out, conversation, index)
        out.mark(index, Kind.OUTPUT)
        if message.tool_calls:
            call = message.tool_calls[0]
            out.text(f'{{"name": "{call.name}", "parameters": {dump_json(call.arguments)}}}')
        elif message.role == "tool":
            out.text(dump_json(message.text))
        else:
            self.write_content(out, index, trimmed(visible(message.content)))
        out.control("<|eot_id|>")

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """The header of the next message."""
        self._header(out, len(conversation.messages), role)

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """An answer that is a JSON object with a name and parameters is a call; so is what follows `<|python_tag|>`."""
        return AnswerGrammar(
            stops=self.stops,
            text_lead=WHITESPACE,
            text_trail=WHITESPACE,
            whole_text_starts=("{",),
            whole_text_call=_whole_call,
            ignored=("<|python_tag|>",),
        )


def _whole_call(text: str) -> Sequence[Part] | None:
    written = text.strip().removeprefix("<|python_tag|>").strip()
    try:
        value = load_json(written)
    except ValueError:
        # Something like {"name": "f", "parameters": {...}  was meant as a call.
        if written.startswith('{"name"') and '"parameters"' in written:
            return (UnparsedToolCallPart(written, "not JSON"),)
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "parameters" not in value:
        return None
    return (call_from_json(written, arguments_key="parameters"),)
