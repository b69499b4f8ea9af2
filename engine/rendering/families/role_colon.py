"""Base models: `User: ...`, `Assistant: ...`, in plain text, one blank line apart. An answer ends where the user's next line would begin."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from engine.rendering.family import Conversation, Family, refuse_tools
from engine.rendering.grammar import AnswerGrammar, Trim
from engine.rendering.messages import RenderError, Role, ThinkingPart
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec

STOP = "\n\nUser:"


@attrs.define(eq=False, kw_only=True)
class RoleColon(Family):
    """`Role: text`, blank lines between. There is no thinking, no tool and no image in this format.

    The stop string is also the next header, so the `\\n\\nUser:` behind an answer is trained with it.
    """

    @property
    def has_extension_property(self) -> bool:
        """Nothing of history is rewritten."""
        return True

    def open(self, out: Script, conversation: Conversation) -> int:
        """A beginning-of-text token where the vocabulary has one that models expect."""
        bos = next(
            (
                name
                for name in ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<bos>")
                if name in self.vocabulary.special_tokens
            ),
            None,
        )
        if bos is not None:
            out.control(bos)
        return 0

    def check(self, conversation: Conversation) -> None:
        """Refuses what would be lost or would end the answer early."""
        refuse_tools(self.name or "role_colon", conversation)
        for index, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            if any(isinstance(part, ThinkingPart) for part in message.content):
                raise RenderError(f"message {index} (assistant): 'role_colon' has no place for thinking")
            if STOP in f"{message.text}\n\n":
                raise RenderError(
                    f"message {index} (assistant): its text holds {STOP!r}, which ends an answer in 'role_colon'"
                )

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """` text` behind the header, a blank line after it."""
        message = conversation.messages[index]
        said_before = conversation.role_before(index) == "assistant"
        if not (said_before and message.role == "user"):  # else the header was written as the stop of the answer
            out.mark(index, Kind.HEADER)
            out.text(f"{message.role.title()}:")
        if message.role == "assistant":
            out.cut()
        out.mark(index, Kind.OUTPUT)
        out.text(" ")
        self.write_content(out, index, message.content)
        out.text("\n\n")
        if message.role == "assistant" and conversation.role_after(index) in (None, "user"):
            out.text("User:")
            out.cut()

    def close_answer(self, out: Script, *, last_token: int, ended: bool, next_role: str | None) -> None:
        """The stop string is the header of the user's message, so nobody else can speak next."""
        if next_role not in ("user", None):
            raise RenderError(
                f"after an answer in 'role_colon' the user speaks, not {next_role!r}: its stop is the user's header"
            )
        if not ended:
            out.text(STOP)

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """`Assistant:`, without the space: the model writes that."""
        if role == "user" and conversation.messages and conversation.messages[-1].role == "assistant":
            return
        out.mark(len(conversation.messages), Kind.HEADER)
        out.text(f"{role.title()}:")

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """One space is frame; everything up to the stop string is said."""
        return AnswerGrammar(stops=(), stop_text=STOP, text_lead=Trim(1, " "))

    def stop_sequences(self) -> tuple[str | int, ...]:
        """The beginning of the user's next line."""
        return (STOP,)
