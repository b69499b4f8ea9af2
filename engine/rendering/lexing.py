"""Tokens to text and control tokens: the alphabet that parsers read."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import attrs
import numpy as np

from engine.rendering.vocabulary import Vocabulary


@attrs.frozen
class Control:
    """A control token in the stream of what was sampled."""

    name: str


def longest_held(text: str, tags: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `tags`."""
    for size in range(min(len(text), max(map(len, tags), default=0)), 0, -1):
        tail = text[-size:]
        if any(len(tag) > size and tag.startswith(tail) for tag in tags):
            return size
    return 0


def as_list(tokens: Iterable[Any]) -> list[int]:
    """Token ids as plain integers, from arrays quickly."""
    return tokens.tolist() if isinstance(tokens, np.ndarray) else [int(token) for token in tokens]


def positions(tokens: Sequence[int], wanted: set[int]) -> list[int]:
    """Where tokens of `wanted` stand, in order; quick where they are few."""
    found = []
    for token in wanted:
        at = -1
        for _ in range(tokens.count(token)):
            at = tokens.index(token, at + 1)
            found.append(at)
    return sorted(found)


_NAMES: WeakKeyDictionary[Vocabulary, Mapping[int, str]] = WeakKeyDictionary()


def control_names(vocabulary: Vocabulary) -> Mapping[int, str]:
    """Control tokens by id; made once for a vocabulary."""
    found = _NAMES.get(vocabulary)
    if found is None:
        found = _NAMES[vocabulary] = {token: name for name, token in vocabulary.special_tokens.items()}
    return found


class Lexer:
    """Tokens to text and control tokens. Characters whose bytes are spread over tokens come out whole."""

    def __init__(self, vocabulary: Vocabulary, text_tags: Sequence[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._names = control_names(vocabulary)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tags = tuple(text_tags)
        self._held = ""

    def feed(self, token: int) -> list[str | Control]:
        """What a token adds, in order."""
        name = self._names.get(token)
        if name is None:
            return self._text(self._decoder.decode(self._vocabulary.token_bytes(token)))
        return [*self.flush(), Control(name)]

    def feed_runs(self, tokens: Sequence[int]) -> Iterator[tuple[list[str | Control], int]]:
        """What tokens add, run by run between control tokens, and how many have been read: much faster than one by one."""
        names, of, start = self._names, self._vocabulary.token_bytes, 0
        controls = positions(tokens, names.keys() & set(tokens))
        for control in (*controls, len(tokens)):
            if control > start:
                yield self._text(self._decoder.decode(b"".join(map(of, tokens[start:control])))), control
            if control < len(tokens):
                yield [*self.flush(), Control(names[tokens[control]])], control + 1
            start = control + 1

    def feed_tagged(self, tokens: Sequence[int]) -> Iterator[tuple[list[str | Control], int]]:
        """Like `feed_runs`, where plain text may hold a tag: tokens about one are taken singly, so that it is known which token ended it."""
        start = 0
        while start < len(tokens):
            size = len(tokens) - start
            while size > 1 and self._holds_tag(tokens[start : start + size]):
                size //= 2
            for items, read in self.feed_runs(tokens[start : start + size]):
                yield items, start + read
            start += size

    def _holds_tag(self, tokens: Sequence[int]) -> bool:
        data = self._held.encode() + b"".join(map(self._vocabulary.token_bytes, tokens))
        return any(tag.encode() in data for tag in self._tags)

    @property
    def reads_text_tags(self) -> bool:
        """Whether plain text may hold something that ends a part; then tokens are taken one by one."""
        return bool(self._tags)

    def flush(self) -> list[str | Control]:
        """What was held back, now that no more text follows."""
        rest = self._text(self._decoder.decode(b"", True))
        self._decoder.reset()
        if self._held:
            rest.append(self._held)
            self._held = ""
        return rest

    def _text(self, text: str) -> list[str | Control]:
        if not self._tags:
            return [text] if text else []
        buffer, found = self._held + text, list[str | Control]()
        while True:
            hits = [(at, -len(tag), tag) for tag in self._tags if (at := buffer.find(tag)) >= 0]
            if not hits:
                break
            at, _, tag = min(hits)
            if at:
                found.append(buffer[:at])
            found.append(Control(tag))
            buffer = buffer[at + len(tag) :]
        held = longest_held(buffer, self._tags)
        self._held = buffer[len(buffer) - held :] if held else ""
        if len(buffer) > held:
            found.append(buffer[: len(buffer) - held])
        return found
