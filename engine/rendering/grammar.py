"""How a family's answers are written: what `engine.rendering.parsing` reads them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from engine.rendering.lexing import Control
from engine.rendering.messages import Part


@attrs.frozen
class Trim:
    """Whitespace that belongs to the frame, at one end of a part."""

    limit: int | None = 0
    """At most this many characters; None: all of them."""
    characters: str | None = "\n"
    """Which; None: any whitespace."""

    def takes(self, character: str) -> bool:
        """Whether a character is of this whitespace."""
        return character.isspace() if self.characters is None else character in self.characters

    def leading(self, text: str) -> int:
        """How many characters at the start of `text` are whitespace of the frame."""
        count = 0
        while count < len(text) and (self.limit is None or count < self.limit) and self.takes(text[count]):
            count += 1
        return count

    def trailing(self, text: str) -> int:
        """How many characters at the end of `text` may be whitespace of the frame."""
        if self.limit == 0:
            return 0
        count = 0
        while count < len(text) and self.takes(text[-1 - count]):
            count += 1
        return count


NOTHING = Trim(0)
ONE_NEWLINE = Trim(1)
NEWLINES = Trim(None)
WHITESPACE = Trim(None, None)

CallItems = Sequence[str | Control]
ReadCalls = Callable[[CallItems], Sequence[Part]]


@attrs.frozen
class AnswerGrammar:
    """How a family's assistant writes: where thinking and calls begin and end, what whitespace is frame, what ends the message."""

    stops: tuple[str, ...]
    """Control tokens that end the message."""
    think: tuple[str, str] | None = None
    """What opens and closes reasoning."""
    starts_thinking: bool = False
    """The generation prompt has opened the reasoning already."""
    calls: tuple[str, str] | None = None
    """What opens and closes a call (or a section of them)."""
    inside_calls: tuple[str, ...] = ()
    """Control tokens that belong to a call's body."""
    read_calls: ReadCalls | None = None
    """Makes parts of a call's body."""
    whole_text_call: Callable[[str], Sequence[Part] | None] | None = None
    """Makes calls of a whole answer that began with one of `whole_text_starts`; None where it is text after all."""
    whole_text_starts: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Control tokens that say nothing of their own."""
    thinking_lead: Trim = NOTHING
    thinking_trail: Trim = NOTHING
    text_lead: Trim = NOTHING
    text_trail: Trim = NOTHING
    """Before the message's end."""
    text_trail_before_calls: Trim = NOTHING
    text_lead_after_thinking: Trim = NOTHING
    stop_text: str | None = None
    """Plain text that ends the message, for formats without control tokens."""
