"""Tokens back to messages: one state machine, fed token by token or all at once.

It never raises, whatever the tokens: what does not fit the family's grammar is recorded as a failure, *structural* where the frame of
the message is broken (it never ended, a control token where none belongs), and of *content* where the frame holds but a tool call in
it cannot be read. A reward may punish the one and the other differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import attrs

from engine.rendering.grammar import NOTHING, WHITESPACE, AnswerGrammar, CallItems, Trim
from engine.rendering.lexing import Control, Lexer, as_list, control_names
from engine.rendering.messages import Message, Part, Role, TextPart, ThinkingPart, UnparsedToolCallPart
from engine.rendering.vocabulary import Vocabulary

Termination = Literal["stop_sequence", "eos", "malformed"]


@attrs.frozen
class Failure:
    """Something that does not fit the family's grammar."""

    kind: Literal["structure", "content"]
    detail: str


@attrs.frozen
class ParsedMessage:
    """What a model's tokens say."""

    message: Message
    termination: Termination
    """How the message ended: by the family's own stop, by another end-of-text token of the vocabulary, or not at all or in a broken way."""
    failures: tuple[Failure, ...] = ()

    @property
    def ok(self) -> bool:
        """Ended by the family's stop, and nothing failed."""
        return self.termination == "stop_sequence" and not self.failures


@attrs.frozen
class Delta:
    """A stretch of a part as it comes. Those of one part, joined, are the part's text (for tool calls: what the model wrote)."""

    kind: Literal["text", "thinking", "tool_call"]
    text: str


@attrs.frozen
class PartEnd:
    """A part is complete."""

    part: Part


Event = Delta | PartEnd


class StreamParser(Protocol):
    """Parses one message while it is sampled."""

    def feed(self, tokens: Iterable[int]) -> list[Event]:
        """Takes the next tokens; gives what is certain by now. Tokens after the end are a structural failure."""
        ...

    def finish(self) -> ParsedMessage:
        """The whole message. Called once, after the last token."""
        ...


Mode = Literal["text", "thinking", "calls"]


class GrammarParser:
    """The state machine of an `AnswerGrammar`."""

    def __init__(self, vocabulary: Vocabulary, grammar: AnswerGrammar, *, role: Role = "assistant") -> None:
        self._grammar = grammar
        self._role = role
        self._calls = grammar.calls or ("", "")
        named = [*(grammar.think or ()), *(grammar.calls or ()), *grammar.inside_calls]
        tags = [tag for tag in named if tag not in vocabulary.special_tokens]
        if grammar.stop_text is not None:
            tags.append(grammar.stop_text)
        self._lexer = Lexer(vocabulary, tags)
        self._eos = {control_names(vocabulary).get(token) for token in vocabulary.eos_tokens}
        self._mode: Mode = "text"
        self._parts: list[Part] = []
        self._failures: list[Failure] = []
        self._events: list[Event] = []
        self._termination: Termination = "malformed"
        self._text: list[str] = []
        self._pending = ""
        """Characters not yet certain: whitespace that may be frame, or the start of what may be a whole-text call."""
        self._at_start = True
        self._lead, self._trail = NOTHING, NOTHING
        self._body: list[str | Control] = []
        self._capturing = False
        self._ended = False
        self._after_end = 0
        self._enter("thinking" if grammar.starts_thinking else "text")

    def feed(self, tokens: Iterable[int]) -> list[Event]:
        """Takes tokens; gives the events that are certain by now."""
        run = as_list(tokens)
        if self._ended:
            self._after_end += len(run)
            run = []
        read = 0
        for items, read in self._lexer.feed_tagged(run) if self._lexer.reads_text_tags else self._lexer.feed_runs(run):  # noqa: B007
            for item in items:
                if not self._ended:  # what a stop string's last token holds beyond it was not asked for
                    self._take(item)
            if self._ended:
                break
        self._after_end += len(run) - read
        events, self._events = self._events, []
        return events

    def finish(self) -> ParsedMessage:
        """The whole message."""
        for item in self._lexer.flush() if not self._ended else ():
            self._take(item)
        if not self._ended:
            self._failures.append(Failure("structure", "the message does not end"))
            self._end("malformed")
        if self._after_end:
            self._failures.append(Failure("structure", f"{self._after_end} tokens after the end of the message"))
            self._termination = "malformed"
        return ParsedMessage(Message(self._role, tuple(self._parts)), self._termination, tuple(self._failures))

    def _take(self, item: str | Control) -> None:
        if isinstance(item, str):
            self._take_text(item)
        else:
            self._take_control(item)

    def _take_control(self, item: Control) -> None:
        grammar, name = self._grammar, item.name
        if name in grammar.stops or name == grammar.stop_text:
            self._end("stop_sequence")
        elif name in self._eos:
            self._end("eos")
        elif self._mode == "calls":
            self._take_in_calls(item)
        elif grammar.think is not None and name in grammar.think:
            self._take_think(name, opens=name == grammar.think[0])
        elif grammar.calls is not None and name == grammar.calls[0]:
            self._open_calls()
        elif name not in grammar.ignored:
            self._failures.append(Failure("structure", f"{name} where none belongs"))
            self._take_text(name)

    def _take_in_calls(self, item: Control) -> None:
        grammar = self._grammar
        if item.name == self._calls[1]:
            self._close_calls()
            self._enter("text")
            self._lead = WHITESPACE
        else:
            if item.name not in grammar.inside_calls:
                self._failures.append(Failure("structure", f"{item.name} inside a tool call"))
            self._body.append(item)
            self._events.append(Delta("tool_call", item.name))

    def _take_think(self, name: str, *, opens: bool) -> None:
        grammar = self._grammar
        if (
            opens
            and self._mode == "text"
            and not any(not isinstance(part, ThinkingPart) for part in self._parts)
            and self._blank()
        ):
            self._close_part(NOTHING)
            self._enter("thinking")
        elif not opens and self._mode == "thinking":
            self._close_part(grammar.thinking_trail)
            self._enter("text")
            self._lead = grammar.text_lead_after_thinking
        else:
            self._failures.append(Failure("structure", f"{name} where none belongs"))
            self._take_text(name)

    def _blank(self) -> bool:
        """Nothing but whitespace was said yet, which is then dropped."""
        if "".join(self._text).strip() or self._pending.strip():
            return False
        self._text, self._pending = [], ""
        return True

    def _open_calls(self) -> None:
        if self._mode == "thinking":
            self._failures.append(Failure("structure", "a tool call before the end of the reasoning"))
        self._close_part(
            self._grammar.thinking_trail if self._mode == "thinking" else self._grammar.text_trail_before_calls
        )
        self._enter("calls")

    def _close_calls(self) -> None:
        self._add_calls((self._grammar.read_calls or _as_unparsed)(self._body))
        self._body = []

    def _add_calls(self, parts: Iterable[Part]) -> None:
        for part in parts:
            if isinstance(part, UnparsedToolCallPart):
                self._failures.append(Failure("content", f"tool call: {part.error}"))
            self._add(part)

    def _add(self, part: Part) -> None:
        self._parts.append(part)
        self._events.append(PartEnd(part))

    def _enter(self, mode: Mode) -> None:
        self._mode = mode
        self._at_start = True
        self._lead = {"text": self._grammar.text_lead, "thinking": self._grammar.thinking_lead}.get(mode, NOTHING)
        if mode == "thinking":
            self._trail = self._grammar.thinking_trail
        else:
            both = (self._grammar.text_trail, self._grammar.text_trail_before_calls)
            self._trail = max(both, key=lambda trim: (trim.limit is None, trim.limit or 0, trim.characters is None))

    def _take_text(self, text: str) -> None:
        if self._mode == "calls":
            self._body.append(text)
            self._events.append(Delta("tool_call", text))
            return
        if self._capturing:
            self._pending += text
            return
        if self._at_start:
            text = self._take_start(text)
        if text:
            text = self._pending + text
            held = self._trail.trailing(text)
            self._pending = text[len(text) - held :] if held else ""
            self._say(text[: len(text) - held] if held else text)

    def _take_start(self, text: str) -> str:
        """Drops the frame's whitespace at the start of a part, and notices an answer that may be a call as a whole."""
        text = self._pending + text
        self._pending = ""
        lead = self._lead
        dropped = lead.leading(text)
        if lead.limit is not None:
            self._lead = attrs.evolve(lead, limit=lead.limit - dropped)
        text = text[dropped:]
        if not text:
            return ""
        starts = self._grammar.whole_text_starts
        if self._mode == "text" and starts and not self._parts:
            if any(text.lstrip().startswith(start) for start in starts):
                self._capturing, self._pending, self._at_start = True, text, False
                return ""
            if not text.strip() or any(start.startswith(text.lstrip()) for start in starts):
                self._pending = text
                return ""
        self._at_start = False
        return text

    def _say(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._events.append(Delta("thinking" if self._mode == "thinking" else "text", text))

    def _close_part(self, trail: Trim) -> None:
        """Ends the text or thinking at hand. An empty one leaves no part."""
        if self._capturing and self._grammar.whole_text_call is not None:
            calls = self._grammar.whole_text_call(self._pending)
            self._capturing = False
            if calls is not None:
                self._events.append(Delta("tool_call", self._pending))
                self._pending = ""
                self._add_calls(calls)
        pending, self._pending = self._pending, ""
        frame = trail.trailing(pending)
        kept = len(pending) - (frame if trail.limit is None else min(frame, trail.limit))
        self._say(pending[:kept])
        text, self._text = "".join(self._text), []
        if text:
            self._add(ThinkingPart(text) if self._mode == "thinking" else TextPart(text))

    def _end(self, termination: Termination) -> None:
        self._termination = termination
        if self._mode == "calls":
            written = "".join(item if isinstance(item, str) else item.name for item in self._body)
            self._body = []
            self._failures.append(Failure("content", "tool call: it does not end"))
            self._add(UnparsedToolCallPart(written, "the call does not end"))
        else:
            if self._mode == "thinking" and termination != "malformed":
                self._failures.append(Failure("structure", "the reasoning does not end"))
            self._close_part(self._grammar.thinking_trail if self._mode == "thinking" else self._grammar.text_trail)
        if any(failure.kind == "structure" for failure in self._failures) and termination == "stop_sequence":
            self._termination = "malformed"
        self._ended = True


def _as_unparsed(items: CallItems) -> Sequence[Part]:
    written = "".join(item if isinstance(item, str) else item.name for item in items)
    return (UnparsedToolCallPart(written, "this renderer reads no tool calls"),)
