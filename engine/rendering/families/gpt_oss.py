"""gpt-oss: OpenAI's Harmony. An answer is a series of small messages on channels: analysis (reasoning), commentary (calls, and words before
them), final. It ends with `<|return|>`, or with `<|call|>` where a tool is called.

In history `<|return|>` becomes `<|end|>`, and reasoning is dropped once a later answer has a final message.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import attrs

from engine.rendering.family import Conversation, Family, answered_call
from engine.rendering.grammar import AnswerGrammar
from engine.rendering.lexing import Control, Lexer, as_list, control_names
from engine.rendering.messages import Message, Part, RenderError, Role, TextPart, ThinkingPart, UnparsedToolCallPart
from engine.rendering.parsing import Delta, Event, Failure, ParsedMessage, PartEnd, StreamParser, Termination
from engine.rendering.script import Kind, Script
from engine.rendering.tools import ToolSpec, call_with_arguments, dump_json
from engine.rendering.typescript import harmony_declarations
from engine.rendering.vocabulary import Vocabulary

START, CHANNEL, MESSAGE, END, CALL, RETURN, CONSTRAIN = (
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|constrain|>",
)
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."


@attrs.define(eq=False, kw_only=True)
class GptOss(Family):
    """gpt-oss 20b and 120b."""

    effort: Literal["low", "medium", "high"] | None = "medium"
    """None: no system message of the family's own."""
    date: str | None = None
    """`Current date` of the system message; None: today's, as the official template has it."""
    controls: ClassVar[tuple[str, ...]] = (START, CHANNEL, MESSAGE, END, CALL, RETURN)
    stops: ClassVar[tuple[str, ...]] = (RETURN, CALL)

    @property
    def has_extension_property(self) -> bool:
        """`<|return|>` becomes `<|end|>`, and reasoning is dropped."""
        return False

    def open(self, out: Script, conversation: Conversation) -> int:
        """The system message, then instructions and tools as the developer's."""
        messages = conversation.messages
        leading = messages[0] if messages and messages[0].role in ("system", "developer") else None
        if self.effort is not None:
            self._head(out, -1, "system")
            out.mark(-1, Kind.FRAME)
            date = self.date or dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d")
            out.text(f"{IDENTITY}\nKnowledge cutoff: 2024-06\nCurrent date: {date}\n\nReasoning: {self.effort}\n\n")
            out.text("# Valid channels: analysis, commentary, final. Channel must be included for every message.")
            if conversation.tools:
                out.text("\nCalls to these tools must go to the commentary channel: 'functions'.")
            out.control(END)
        if (leading is not None and leading.text) or conversation.tools:
            self._write_developer(out, leading, conversation.tools)
        return 0 if leading is None else 1

    def _write_developer(self, out: Script, leading: Message | None, tools: Sequence[ToolSpec]) -> None:
        index = -1 if leading is None else 0
        self._head(out, index, "developer")
        out.mark(index, Kind.FRAME)
        if leading is not None and leading.text:
            out.text("# Instructions\n\n")
            out.mark(index, Kind.OUTPUT)
            self.write_content(out, index, leading.content)
            out.mark(index, Kind.FRAME)
            out.text("\n\n")
        if tools:
            out.text(harmony_declarations(tools))
        out.mark(index, Kind.OUTPUT)
        out.control(END)

    def _head(self, out: Script, index: int, author: str) -> None:
        out.mark(index, Kind.HEADER)
        out.control(START)
        out.text(author)
        out.control(MESSAGE)

    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """A message of any role."""
        message = conversation.messages[index]
        if message.role == "assistant":
            self._write_answer(out, conversation, index)
        elif message.role == "tool":
            name, _ = answered_call(conversation.messages, index)
            if name is None:
                raise RenderError(
                    f"message {index} (tool): Harmony writes the tool's name, and neither the result nor a call before it has one"
                )
            out.mark(index, Kind.HEADER)
            out.control(START)
            out.text(f"functions.{name} to=assistant")
            out.control(CHANNEL)
            out.text("commentary")
            out.control(MESSAGE)
            out.mark(index, Kind.OUTPUT)
            out.text(dump_json(message.text))
            out.control(END)
        else:
            self._head(out, index, message.role)
            out.mark(index, Kind.OUTPUT)
            self.write_content(out, index, message.content)
            out.control(END)

    def _write_answer(self, out: Script, conversation: Conversation, index: int) -> None:
        message = conversation.messages[index]
        last = conversation.is_last(index) and not conversation.generating
        # The answer that is trained is not yet history for those before it.
        history = conversation.messages if conversation.generating else conversation.messages[:-1]
        final_follows = any(later.role == "assistant" and not later.tool_calls for later in history[index + 1 :])
        keeps = last or (bool(message.tool_calls) and not final_follows)
        blocks: list[tuple[str, str, str]] = []
        if message.thinking and keeps:
            blocks.append(("analysis", message.thinking, END))
        said = "".join([part.text for part in message.content if isinstance(part, TextPart | UnparsedToolCallPart)])
        if message.tool_calls and said:
            blocks.append(("commentary", said, END))
        elif not message.tool_calls:
            blocks.append(("final", said, RETURN if last else END))
        if message.images:
            raise RenderError(f"message {index}: renderer {self.name!r} has no place for images")
        out.mark(index, Kind.HEADER)
        out.control(START)
        out.text("assistant")
        self.begin_output(out, conversation, index)
        for n, (channel, text, end) in enumerate(blocks):
            if n:
                out.control(START)
                out.text("assistant")
            out.control(CHANNEL)
            out.text(channel)
            out.control(MESSAGE)
            out.text(text)
            out.control(end)
        for n, call in enumerate(message.tool_calls):
            if n or blocks:
                out.control(START)
                out.text("assistant")
            out.text(f" to=functions.{call.name}")
            out.control(CHANNEL)
            out.text("commentary json")
            out.control(MESSAGE)
            out.text(dump_json(call.arguments))
            out.control(CALL)

    def close_answer(self, out: Script, *, last_token: int, ended: bool, next_role: str | None) -> None:
        """An answer that was cut short is closed by `<|end|>`; only the model itself returns."""
        if not ended:
            out.control(END)

    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """`<|start|>assistant`: the channel is the model's choice."""
        out.mark(len(conversation.messages), Kind.HEADER)
        out.control(START)
        out.text(role)
        if role != "assistant":
            out.control(MESSAGE)

    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """Harmony is no grammar of this kind; see `HarmonyParser`."""
        return AnswerGrammar(stops=self.stops)

    def stream_parser(
        self, *, tools: Sequence[ToolSpec] = (), prefill: str = "", after_tool: bool = False
    ) -> StreamParser:
        """A parser of channels."""
        parser = HarmonyParser(self.vocabulary)
        if prefill:
            parser.feed(self.vocabulary.encode(prefill))
        return parser


_RECIPIENT = re.compile(r"to=(\S+)")


class HarmonyParser:
    """Reads `<|channel|>...<|message|>...<|end|>` blocks, any number of them, until the answer ends.

    `<|call|>` ends the answer unless another block follows: several calls in one message are written that way.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._lexer = Lexer(vocabulary)
        self._eos = {control_names(vocabulary).get(token) for token in vocabulary.eos_tokens}
        self._parts: list[Part] = []
        self._failures: list[Failure] = []
        self._events: list[Event] = []
        self._header: list[str] = []
        self._channel: list[str] | None = None
        self._in_header = True
        self._body: list[str] = []
        self._closed: str | None = None
        """The token that ended the last block, while none has been opened behind it."""
        self._termination: Termination | None = None
        self._after_end = 0

    def feed(self, tokens: Iterable[int]) -> list[Event]:
        """Takes tokens; gives the events that are certain by now."""
        run = as_list(tokens)
        if self._termination is not None:
            self._after_end += len(run)
            run = []
        read = 0
        for items, read in self._lexer.feed_runs(run):  # noqa: B007
            for item in items:
                self._take(item)
            if self._termination is not None:
                break
        self._after_end += len(run) - read
        events, self._events = self._events, []
        return events

    def finish(self) -> ParsedMessage:
        """The whole message."""
        for item in self._lexer.flush():
            self._take(item)
        if self._termination is None:
            if self._closed == CALL:
                self._termination = "stop_sequence"
            else:
                self._fail("the message does not end")
                self._close_block(None)
                self._termination = "malformed"
        if self._after_end:
            self._fail(f"{self._after_end} tokens after the end of the message")
        if any(failure.kind == "structure" for failure in self._failures):
            self._termination = "malformed" if self._termination == "stop_sequence" else self._termination
        return ParsedMessage(Message("assistant", tuple(self._parts)), self._termination, tuple(self._failures))

    def _fail(self, detail: str) -> None:
        self._failures.append(Failure("structure", detail))

    def _take(self, item: str | Control) -> None:
        if isinstance(item, str):
            self._take_text(item)
        elif item.name in (RETURN, CALL, END) or item.name in self._eos:
            self._take_end(item.name)
        elif item.name == START and self._closed is not None:
            self._closed = None
            self._in_header, self._header, self._channel = True, [], None
        elif item.name == CHANNEL and self._in_header and self._channel is None and self._closed is None:
            self._channel = []
        elif item.name == MESSAGE and self._in_header and self._closed is None:
            self._in_header = False
        elif item.name == CONSTRAIN and self._in_header:
            self._take_text(" ")
        else:
            self._fail(f"{item.name} where none belongs")
            self._take_text(item.name)

    def _take_text(self, text: str) -> None:
        if self._closed is not None:
            self._fail(f"text between messages: {text[:40]!r}")
        elif not self._in_header:
            self._body.append(text)
            self._events.append(Delta(self._kind(), text))
        elif self._channel is not None:
            self._channel.append(text)
        else:
            self._header.append(text)

    def _kind(self) -> Literal["text", "thinking", "tool_call"]:
        if self._recipient() is not None:
            return "tool_call"
        return "thinking" if self._channel_name() == "analysis" else "text"

    def _channel_name(self) -> str:
        return ("".join(self._channel or ()).split() or [""])[0]

    def _recipient(self) -> str | None:
        found = _RECIPIENT.search("".join(self._header)) or _RECIPIENT.search("".join(self._channel or ()))
        return found[1] if found else None

    def _take_end(self, name: str) -> None:
        if self._closed is not None:
            if name in self._eos and self._closed in (END, CALL):
                self._termination = "eos"
            else:
                self._fail(f"{name} where none belongs")
            return
        self._close_block(name)
        if name == RETURN:
            self._termination = "stop_sequence"
        elif name in self._eos:
            self._termination = "eos"
        else:
            self._closed = name

    def _close_block(self, name: str | None) -> None:
        """Makes a part of the block at hand."""
        if self._closed is not None:
            return
        if self._in_header:
            if name is not None or "".join((*self._header, *(self._channel or ()))).strip():
                self._fail("a message without <|message|>")
                self._add_text("".join(self._header))
            return
        body, self._body = "".join(self._body), []
        recipient = self._recipient()
        if recipient is not None:
            tool = recipient.removeprefix("functions.")
            call = call_with_arguments(tool, body, body)
            if name is None:
                call = UnparsedToolCallPart(body, "the call does not end")
            if isinstance(call, UnparsedToolCallPart):
                self._failures.append(Failure("content", f"tool call: {call.error}"))
            self._add(call)
        elif self._channel_name() == "analysis":
            if body:
                self._add(ThinkingPart(body))
        else:
            if self._channel_name() not in ("final", "commentary"):
                self._fail(f"unknown channel {self._channel_name()!r}")
            self._add_text(body)

    def _add_text(self, text: str) -> None:
        if text:
            self._add(TextPart(text))

    def _add(self, part: Part) -> None:
        self._parts.append(part)
        self._events.append(PartEnd(part))
