"""A chat format for people: what an environment shows reads as a conversation, and what is typed is an answer.

    Tools, called by lines such as  /call calculator {"expression": "2 + 3"}
      calculator(expression: string)  Evaluates an expression.

    What is 2 + 3?
    > /call calculator {"expression": "2 + 3"}
    [calculator] 5
    > 5

Everything is plain text but the end of an answer, so any environment can be played that a model could play: tools, images and all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.rendering import Renderer, as_vocabulary
from engine.rendering.family import Conversation, Family
from engine.rendering.grammar import AnswerGrammar
from engine.rendering.images import image_chunk
from engine.rendering.messages import ImagePart, Message, Part, Role, ToolCallPart, UnparsedToolCallPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_with_arguments

END = "<|end of answer|>"
CALL = "/call"
ANSWER = "> "


def make_format() -> Renderer:
    """The format, with a vocabulary of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return ByHand(as_vocabulary(tokenizer), name="by_hand")


@attrs.define(eq=False, kw_only=True)
class ByHand(Family):
    """The format's grammar."""

    controls: ClassVar[tuple[str, ...]] = (END,)
    stops: ClassVar[tuple[str, ...]] = (END,)

    @property
    def has_extension_property(self) -> bool:
        """Nothing of history is rewritten."""
        return True

    def open(self, out: Script, conversation: Conversation) -> int:
        """The tools."""
        if conversation.tools:
            out.mark(-1, Kind.FRAME)
            out.text(f'Tools, called by lines such as  {CALL} name {{"argument": "value"}}\n')
            for tool in conversation.tools:
                out.text(f"  {_declared(tool)}\n")
            out.text("\n")
        return 0

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """System messages and results with their origin, what is asked as it is, answers behind `>`."""
        message = conversation.messages[index]
        out.mark(index, Kind.HEADER)
        if message.role == "assistant":
            out.text(ANSWER)
            self.begin_output(out, conversation, index)
            self._write_answer(out, index, message)
            out.control(END)
            out.mark(-1, Kind.FRAME)
            out.text("\n")
            return
        if message.role == "tool":
            out.text(f"[{conversation.tool_name(index) or 'tool'}] ")
        elif message.role != "user":
            out.text(f"({message.role}) ")
        out.mark(index, Kind.OUTPUT)
        self.write_content(out, index, message.content)
        out.text("\n")

    def _write_answer(self, out: Script, index: int, message: Message) -> None:
        lines = [part for part in message.content if not isinstance(part, ToolCallPart)]
        self.write_content(out, index, lines)
        for call in message.tool_calls:
            if lines or call is not message.tool_calls[0]:
                out.text("\n")
            out.text(f"{CALL} {call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}")

    def write_image(self, out: Script, index: int, image: ImagePart) -> None:  # noqa: ARG002  (a family's hook)
        """An image counts as one position: whoever shows the prompt shows it."""
        out.image(image_chunk(image, 1))

    def close_answer(self, out: Script, *, last_token: int, ended: bool, next_role: str | None) -> None:
        """A new line behind the answer."""
        Family.close_answer(self, out, last_token=last_token, ended=ended, next_role=next_role)
        out.text("\n")

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:  # noqa: ARG002
        """The prompt sign."""
        out.mark(len(conversation.messages), Kind.HEADER)
        out.text(ANSWER)

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:  # noqa: ARG002
        """Text; calls where the answer begins with one."""
        return AnswerGrammar(stops=self.stops, whole_text_call=read_calls, whole_text_starts=(CALL,))


def read_calls(text: str) -> Sequence[Part] | None:
    """The calls in an answer's lines; None where it is no call after all (`/callous`)."""
    parts: list[Part] = []
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word != CALL:
            if not parts:
                return None
            parts.append(UnparsedToolCallPart(line, f"a line of calls begins with {CALL}"))
            continue
        name, _, arguments = rest.strip().partition(" ")
        parts.append(call_with_arguments(name, arguments.strip() or {}, line))
    return parts


def _declared(tool: ToolSpec) -> str:
    """`name(argument: type, ...)  description`"""
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", ())
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {_kind(schema)}" for name, schema in properties.items()
    )
    return f"{tool.name}({arguments})  {' '.join(tool.description.split())}".rstrip()


def _kind(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    return str(schema.get("type", "any")) if "enum" not in schema else " | ".join(map(str, schema["enum"]))
