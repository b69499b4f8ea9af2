"""An embedder without a model: words and pieces of words, hashed into a vector.

It knows spelling and nothing of meaning: texts are near each other when they share words, or words that are spelt alike. That is enough for
tests, for toy corpora and as a baseline; for synonyms, take a sentence encoder.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs
import numpy as np

from engine.retrieval.ports import Embeddings, Purpose
from engine.runtime.offload import offload

_WORD = re.compile(r"\w+")
_EMPTY = "\0no word"
"""The feature of a text without any, so that its embedding has a length too."""
INLINE = 20_000
"""Characters embedded on the event loop: a few milliseconds. More goes into a thread."""


@attrs.frozen
class HashingEmbedder:
    """Bags of words and character n-grams by the hashing trick (Weinberger et al. 2009, arXiv:0902.2206), unit norm, deterministic everywhere.

    Each feature adds ±(1 + log count) · weight · idf to one coordinate. Without `idf` (see `fitted`), all words weigh the same.
    """

    dimensions: int = attrs.field(default=512, validator=attrs.validators.ge(8))
    characters: tuple[int, int] = (3, 5)
    """Shortest and longest character n-gram of a word, its ends marked; (0, 0): words alone."""
    characters_weight: float = 0.7
    """Weight of all of a word's n-grams together, beside the word's own 1."""
    idf: Mapping[str, float] = attrs.field(factory=dict, repr=False)
    """Weight by word: rare words say more than common ones."""
    unseen_idf: float = 1.0
    """Weight of words that `idf` does not know."""

    @property
    def unit_norm(self) -> bool:
        """Always."""
        return True

    def fitted(self, texts: Iterable[str]) -> HashingEmbedder:
        """The same embedder with smoothed inverse document frequencies, 1 + ln((1 + n) / (1 + df)), of a corpus."""
        seen: Counter[str] = Counter()
        number = 0
        for text in texts:
            number += 1
            seen.update(set(_words(text)))
        idf = {word: 1.0 + math.log((1 + number) / (1 + count)) for word, count in seen.items()}
        return attrs.evolve(self, idf=idf, unseen_idf=1.0 + math.log(1 + number))

    async def embed(self, texts: Sequence[str], *, purpose: Purpose = "document") -> Embeddings:  # noqa: ARG002  (all texts are alike to it)
        """See `Embedder`."""
        if sum(map(len, texts)) <= INLINE:
            return self.embed_now(texts)
        return await offload(self.embed_now, texts)

    def embed_now(self, texts: Sequence[str]) -> Embeddings:
        """Without waiting: shape (N, D)."""
        embeddings_N_D = np.zeros((len(texts), self.dimensions), np.float64)
        for row, text in enumerate(texts):
            for feature, weight in self._features(text):
                # Two independent bits of one checksum: where, and with which sign.
                hashed = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
                embeddings_N_D[row, (hashed >> 1) % self.dimensions] += weight if hashed & 1 else -weight
            if not embeddings_N_D[row].any():  # no word, or features that cancelled out exactly
                embeddings_N_D[row, zlib.crc32(_EMPTY.encode()) % self.dimensions] = 1.0
        norms_N = np.linalg.norm(embeddings_N_D, axis=1, keepdims=True)
        unit_N_D: Embeddings = (embeddings_N_D / np.maximum(norms_N, 1e-300)).astype(np.float32)
        return unit_N_D

    def _features(self, text: str) -> Iterable[tuple[str, float]]:
        shortest, longest = self.characters
        for word, count in Counter(_words(text)).items():
            weight = (1.0 + math.log(count)) * self.idf.get(word, self.unseen_idf)
            yield word, weight
            if not longest:
                continue
            marked = f"\1{word}\2"
            grams = [
                marked[start : start + length]
                for length in range(shortest, longest + 1)
                for start in range(len(marked) - length + 1)
            ]
            for gram in grams:
                yield gram, weight * self.characters_weight / math.sqrt(len(grams))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
