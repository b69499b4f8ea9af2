"""Noticing that a completion has reached a stop string or a stop token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.backends.values import SamplingParams

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Bytes of UTF-8's longest character, so the most tokens it can be cut into."""


class StopWatch:
    """Follows one completion token by token.

    A stop string may span tokens, begin or end inside one, and hold characters of several bytes that tokens cut apart. Only text
    that this token added is looked at, together with as much before it as a stop string could reach back.
    """

    def __init__(self, params: SamplingParams, decode: Callable[[Sequence[int]], str]) -> None:
        self._ids = frozenset(stop for stop in params.stop if isinstance(stop, int))
        self._strings = tuple(stop for stop in params.stop if isinstance(stop, str))
        self._reach = max(map(len, self._strings), default=1) - 1
        self._decode = decode
        self._tail = ""
        # Tokens are decoded a few at a time: [_context, _settled) is text already in the tail and serves as context for
        # decoders that treat the first token of a text differently; tokens from _settled on are not yet whole characters.
        self._context = 0
        self._settled = 0

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of `tokens` completes a stop. Call once for each token."""
        if tokens[-1] in self._ids:
            return True
        if not self._strings:
            return False
        known = self._decode(tokens[self._context : self._settled])
        added = self._decode(tokens[self._context :])[len(known) :]
        text = self._tail + added
        if any(stop in text for stop in self._strings):
            return True
        broken = len(tokens) - self._settled > _LONGEST_CHARACTER  # bytes that will never be a character
        if broken or not added.endswith(_INCOMPLETE):
            self._tail = text[-self._reach :] if self._reach else ""
            self._context, self._settled = self._settled, len(tokens)
        return False
