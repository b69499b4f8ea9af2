"""A model's own tokenizer behind the engine's `Tokenizer` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HuggingFaceTokenizer


class LocalTokenizer:
    """A `tokenizers.Tokenizer` that reads special tokens' names inside a text as text."""

    def __init__(self, inner: HuggingFaceTokenizer) -> None:
        # A copy: the switch below must not change the tokenizer of whoever passed it.
        self.inner: HuggingFaceTokenizer = HuggingFaceTokenizer.from_str(inner.to_str())
        self.inner.encode_special_tokens = True
        self.inner.no_padding()
        self.inner.no_truncation()
        self._special = {str(token.content): number for number, token in self.inner.get_added_tokens_decoder().items()}

    @classmethod
    def from_file(cls, path: Path) -> LocalTokenizer:
        """Reads a `tokenizer.json`."""
        return cls(HuggingFaceTokenizer.from_file(str(path)))

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: a special token's name inside `text` stays text."""
        ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int] | Any) -> str:
        """Text of token ids, special tokens by their names."""
        text: str = self.inner.decode([int(token) for token in tokens], skip_special_tokens=False)
        return text

    def special_token(self, name: str) -> int:
        """Id of a special token. Raises KeyError when the vocabulary has none of that name."""
        if name not in self._special:
            raise KeyError(f"the tokenizer has no special token {name!r}")
        return self._special[name]

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, added ones included."""
        size: int = self.inner.get_vocab_size(with_added_tokens=True)
        return size
