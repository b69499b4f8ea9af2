"""The page a family writes a conversation on: control tokens, text and images in order, each labelled with whom it belongs to.

Text between two control tokens is tokenised in one piece, as a model's own chat template has it, except where the family cuts: after the
header of an assistant's message, because that is where a generation prompt ends and a model begins to sample. Labels are
turned into weights afterwards, so every way of choosing what is trained sees the same tokens.

Dimension suffix: `T` positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Chunk, ImageChunk, ModelInput, TokenChunk
from engine.rendering.vocabulary import Vocabulary


class Kind(IntEnum):
    """What a stretch of a conversation is."""

    FRAME = 0
    """The family's own: a default system message, tool declarations, separators."""
    HEADER = 1
    """Who speaks."""
    PREFILL = 2
    """What the family's generation prompt puts into the assistant's mouth."""
    OUTPUT = 3
    """What is said, and the token that ends it."""


Label = tuple[int, Kind]
"""Index of the message in the conversation (-1: none), and what the stretch is."""


@attrs.define
class _Run:
    """Neighbouring texts that are tokenised together, with the length in characters and the label of each."""

    text: str
    labels: list[tuple[int, Label]]
    tokens: list[int] = attrs.field(factory=list)


@attrs.frozen
class Piece:
    """Tokens (or an image) with one label, or several where a token boundary is yet to be looked for."""

    length: int
    labels: tuple[tuple[int, Label], ...]
    text: str | None = None


@attrs.frozen
class Written:
    """A conversation as a model reads it, and which positions belong to what."""

    model_input: ModelInput
    pieces: tuple[Piece, ...]
    vocabulary: Vocabulary = attrs.field(repr=False)

    def weights(self, weight: Callable[[Label], float]) -> NDArray[np.float32]:
        """Weight of every position, shape (T,), by the label of what it belongs to.

        A token on the border of two labels belongs to the later one: it holds a character of what is said.
        """
        weights_T = np.empty(self.model_input.length, np.float32)
        start = 0
        for piece in self.pieces:
            end = start + piece.length
            found = [weight(label) for _, label in piece.labels]
            if piece.text is None or all(value == found[0] for value in found):
                weights_T[start:end] = found[0]
            else:
                weights_T[start:end] = self._within(piece, found)
            start = end
        return weights_T

    def _within(self, piece: Piece, found: list[float]) -> NDArray[np.float32]:
        _, ends = self.vocabulary.encode_with_ends(piece.text or "")
        borders = np.cumsum([characters for characters, _ in piece.labels])
        owners = np.minimum(np.searchsorted(borders, ends, side="left"), len(found) - 1)
        return np.asarray(found, np.float32)[owners]


class Script:
    """What a family writes on. Everything written carries the label that is current at that moment."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._special = vocabulary.special_tokens
        self._items: list[_Run | tuple[int | ImageChunk, Label]] = []
        self._open: _Run | None = None
        self.label: Label = (-1, Kind.FRAME)

    def mark(self, index: int, kind: Kind) -> None:
        """From here on: part `kind` of message `index`."""
        self.label = (index, kind)

    def cut(self) -> None:
        """No token reaches over this place."""
        self._open = None

    def text(self, text: str) -> None:
        """Plain text; control strings in it stay text."""
        if not text:
            return
        if self._open is None:
            self._open = _Run(text, [(len(text), self.label)])
            self._items.append(self._open)
            return
        self._open.text += text
        self._open.labels.append((len(text), self.label))

    def control(self, name: str) -> None:
        """A control token; text of the same letters where the vocabulary has no such token."""
        token = self._special.get(name)
        if token is None:
            self.text(name)
        else:
            self._items.append((token, self.label))
            self._open = None

    def image(self, image: ImageChunk) -> None:
        """An image, with as many positions as it expects."""
        self._items.append((image, self.label))
        self._open = None

    def tokens(self, tokens: list[int]) -> None:
        """Tokens as they are: what was sampled is not tokenised again."""
        for token in tokens:
            self._items.append((token, self.label))
        self._open = None

    def finish(self, known: dict[str, list[int]] | None = None) -> Written:
        """Tokenises what was written. `known` keeps runs of text between calls that share most of theirs."""
        runs = [item for item in self._items if isinstance(item, _Run)]
        if known is None:
            for run, tokens in zip(runs, self._vocabulary.encode_batch([run.text for run in runs]), strict=True):
                run.tokens = tokens
        else:
            new = list({run.text for run in runs} - known.keys())
            known.update(zip(new, self._vocabulary.encode_batch(new), strict=True))
            for run in runs:
                run.tokens = known[run.text]
        return self._assemble()

    def _assemble(self) -> Written:
        chunks: list[Chunk] = []
        tokens: list[int] = []
        pieces: list[Piece] = []
        for item in self._items:
            if isinstance(item, _Run):
                tokens.extend(item.tokens)
                pieces.append(Piece(len(item.tokens), tuple(item.labels), item.text if len(item.labels) > 1 else None))
                continue
            what, label = item
            if isinstance(what, int):
                tokens.append(what)
                pieces.append(Piece(1, ((0, label),)))
                continue
            if tokens:
                chunks.append(TokenChunk(tokens))
                tokens = []
            chunks.append(what)
            pieces.append(Piece(what.length, ((0, label),)))
        if tokens or not chunks:
            chunks.append(TokenChunk(tokens))
        return Written(ModelInput(tuple(chunks)), tuple(pieces), self._vocabulary)


def missing_controls(special: Mapping[str, int], names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are no control tokens of a vocabulary."""
    return [name for name in names if name not in special]
