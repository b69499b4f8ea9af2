"""Qwen 3: ChatML with `<think>`, which is dropped from history, and JSON tool calls. Thinking, hybrid, instruct and vision variants.

Hybrid models think in a block they open themselves; `disable_thinking` prefills an empty one. Instruct models have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs

from engine.rendering.families.chatml import CALL, IM_START, ChatML, read_json_call
from engine.rendering.family import Conversation, visible
from engine.rendering.grammar import NEWLINES, NOTHING, ONE_NEWLINE, AnswerGrammar
from engine.rendering.images import image_chunk, image_size, qwen_vl_tokens
from engine.rendering.messages import ImagePart, Message, Part, Role, TextPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec

THINK = ("<think>", "</think>")


@attrs.define(eq=False, kw_only=True)
class Qwen3(ChatML):
    """Qwen 3. `thinking`: "hybrid" opens its own block, "prefilled" finds it opened, "disabled" finds it empty, "none" has none."""

    thinking: Literal["hybrid", "prefilled", "disabled", "none"] = "hybrid"
    vision: bool = False
    controls: ClassVar[tuple[str, ...]] = (IM_START, *CALL)
    image_controls: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>")

    @property
    def has_extension_property(self) -> bool:
        """Instruct models rewrite nothing; the others drop thinking from history."""
        return self.thinking == "none"

    def keeps_thinking(self, conversation: Conversation, index: int) -> bool:
        """Whether the block is written: after the last question, and in the last message even when it is empty."""
        if index <= last_query(conversation):
            return False
        return conversation.is_last(index) or bool(conversation.messages[index].thinking)

    def write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        """Thinking where it is kept, content, calls."""
        message = conversation.messages[index]
        if self.thinking == "none":
            ChatML.write_answer(self, out, conversation, index)
            return
        said = visible(message.content)
        if self.keeps_thinking(conversation, index):
            reasoning = "" if self.thinking == "disabled" else (message.thinking or "")
            self.write_thinking(out, conversation, index, reasoning.strip("\n"))
            said = without_leading_newlines(said)
        else:
            self.begin_output(out, conversation, index)
        self.write_content(out, index, said)
        self.write_calls(out, message.tool_calls, first_newline=bool(message.text or message.images))

    def write_thinking(self, out: Script, conversation: Conversation, index: int, reasoning: str) -> None:
        """The block, with what the generation prompt supplies marked as such."""
        if self.thinking == "disabled":
            out.mark(index, Kind.PREFILL)
            self.write_empty_block(out)
            self.begin_output(out, conversation, index)
            return
        if self.thinking == "prefilled":
            out.mark(index, Kind.PREFILL)
            out.control(THINK[0])
            out.text("\n")
            self.begin_output(out, conversation, index)
        else:
            self.begin_output(out, conversation, index)
            out.control(THINK[0])
            out.text("\n")
        out.text(reasoning + "\n")
        out.control(THINK[1])
        out.text("\n\n")

    def write_empty_block(self, out: Script) -> None:
        """A block without a thought."""
        out.control(THINK[0])
        out.text("\n\n")
        out.control(THINK[1])
        out.text("\n\n")

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """The header, and the block where the variant prefills it."""
        self._header(out, len(conversation.messages), role)
        if role != "assistant":
            return
        out.mark(len(conversation.messages), Kind.PREFILL)
        if self.thinking == "disabled":
            self.write_empty_block(out)
        elif self.thinking == "prefilled":
            out.control(THINK[0])
            out.text("\n")

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Thinking, text, calls."""
        thinks = self.thinking in ("hybrid", "prefilled")
        return AnswerGrammar(
            stops=self.stops,
            think=THINK if thinks else None,
            starts_thinking=self.thinking == "prefilled",
            calls=CALL,
            read_calls=read_json_call,
            thinking_lead=NEWLINES,
            thinking_trail=NEWLINES,
            text_lead=NEWLINES if self.thinking == "disabled" else NOTHING,
            text_lead_after_thinking=NEWLINES,
            text_trail_before_calls=ONE_NEWLINE,
        )

    def write_image(self, out: Script, index: int, image: ImagePart) -> None:
        """`<|vision_start|>`, as many positions as the image takes, `<|vision_end|>`."""
        if not self.vision:
            ChatML.write_image(self, out, index, image)
        out.control(self.image_controls[0])
        out.image(image_chunk(image, qwen_vl_tokens(*image_size(image))))
        out.control(self.image_controls[1])


def last_query(conversation: Conversation) -> int:
    """Index of the last user message that is not a tool's answer in disguise; the last message's where there is none."""
    for index in range(len(conversation.messages) - 1, -1, -1):
        message = conversation.messages[index]
        if message.role == "user" and not _is_tool_response(message):
            return index
    return len(conversation.messages) - 1


def _is_tool_response(message: Message) -> bool:
    text = message.text
    return text.startswith("<tool_response>") and text.endswith("</tool_response>") and not message.images


def without_leading_newlines(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts of a message, the first text without its leading newlines."""
    found = list(parts)
    for n, part in enumerate(parts):
        if not isinstance(part, TextPart):
            break
        stripped = part.text.lstrip("\n")
        found[n] = TextPart(stripped)
        if stripped:
            break
    return tuple(found)
