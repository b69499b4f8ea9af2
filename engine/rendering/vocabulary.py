"""Text to token ids and back, over Hugging Face `tokenizers`.

The point of the wrapper: text is only ever text. The added tokens of a tokenizer (`<|im_end|>`, `<think>`, ...) are taken out of the
encoder and kept in a table of their own, so a user who types one gets the letters, and only a renderer can write the token.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tokenizers


@runtime_checkable
class Vocabulary(Protocol):
    """What renderers need of a tokenizer: the backends' `Tokenizer`, plus runs of text at once and the bytes of a token."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens by name: what no text can produce."""
        ...

    @property
    def eos_tokens(self) -> tuple[int, ...]:
        """Tokens that end any text of this vocabulary, whatever the chat format."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int] | Any) -> str: ...

    def special_token(self, name: str) -> int: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text encoded by itself."""
        ...

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and for each the position in `text` (characters) where it ends."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes a token stands for; a control token gives its name, an id outside the vocabulary nothing."""
        ...


EOS_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|im_end|>",
    "<|eot_id|>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
)


_SHORT, _MOST_SHORT = 16, 4096


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: every byte has a printable character, those without one of their own from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _decoder_kinds(decoder: Mapping[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoder_kinds(inner) for inner in decoder.get("decoders", ())))


class _TokenBytes(dict[int, bytes]):
    """Bytes by token, found once: a lookup that hits runs at the speed of a dictionary."""

    def __init__(self, find: Callable[[int], bytes]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, token: int) -> bytes:
        found = self[token] = self._find(token)
        return found


class HuggingFaceVocabulary:
    """A `tokenizers.Tokenizer` as a `Vocabulary`. Load one with `load_vocabulary`, which caches."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, name: str = "", chat_template: str | None = None) -> None:
        self.name = name
        """Name or path it was loaded from; empty when made from a tokenizer at hand."""
        self.chat_template = chat_template
        """Source of the chat template, where it came with the tokenizer."""
        self.full = tokenizer
        """The tokenizer as it came, which does turn typed control strings into control tokens. For chat templates alone."""
        self._special = {added.content: token for token, added in sorted(tokenizer.get_added_tokens_decoder().items())}
        self._name_of = {token: content for content, token in self._special.items()}
        self._text = self._without_added_tokens(tokenizer)
        self._decoder_kinds = _decoder_kinds(json.loads(tokenizer.to_str())["decoder"])
        # Vocabularies of these models hold the control tokens as ordinary pieces too, so text could still reach them.
        self._guarded = type(self._text.model).__name__ in ("Unigram", "WordLevel", "WordPiece")
        self._short: dict[str, tuple[int, ...]] = {}
        self.token_bytes = _TokenBytes(self._find_bytes).__getitem__
        """The bytes of one token, cached; a control token gives its name, an id outside the vocabulary nothing."""
        self._vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        highest = max([*self._name_of, -1]) + 1
        self._vocab_size = max(self._vocab_size, highest)

    @staticmethod
    def _without_added_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = []
        state["post_processor"] = state["truncation"] = state["padding"] = None
        return tokenizers.Tokenizer.from_str(json.dumps(state))

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens by name."""
        return self._special

    @functools.cached_property
    def eos_tokens(self) -> tuple[int, ...]:
        """Tokens known to end a text, of those that this vocabulary has."""
        return tuple(self._special[name] for name in EOS_NAMES if name in self._special)

    def special_token(self, name: str) -> int:
        """Id of a control token. Raises KeyError when the vocabulary has none of that name."""
        return self._special[name]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; never a control token."""
        return self.encode_batch((text,))[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text encoded by itself, without the cost of offsets. The short texts of frames (a role and its line break) are remembered."""
        known = [self._short.get(text) for text in texts]
        unknown = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        if not unknown:
            return [list(ids) for ids in known if ids is not None]
        encoded = [found.ids for found in self._text.encode_batch_fast(unknown, add_special_tokens=False)]
        if self._guarded:
            for n, ids in enumerate(encoded):
                if not self._name_of.keys().isdisjoint(ids):
                    encoded[n] = self._encode_around_names(unknown[n])
        for text, ids in zip(unknown, encoded, strict=True):
            if len(text) <= _SHORT and len(self._short) < _MOST_SHORT:
                self._short[text] = tuple(ids)
        rest = iter(encoded)
        return [next(rest) if ids is None else list(ids) for ids in known]

    def _encode_around_names(self, text: str) -> list[int]:
        """Encodes a text that holds a control token's name by halving the name until it is no longer seen."""
        for name in sorted(self._special, key=len, reverse=True):
            at = text.find(name)
            if at >= 0 and len(name) > 1:
                middle = at + len(name) // 2
                return [*self.encode(text[:middle]), *self.encode(text[middle:])]
        return [token for token in self._text.encode(text, add_special_tokens=False).ids if token not in self._name_of]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids as `encode` gives them, and the character each ends at."""
        tokens = self.encode(text)
        encoding = self._text.encode(text, add_special_tokens=False)
        if encoding.ids == tokens:
            return tokens, [end for _, end in encoding.offsets]
        return tokens, [len(self.decode(tokens[: n + 1])) for n in range(len(tokens))]  # a control string was broken up

    def decode(self, tokens: Sequence[int] | Any) -> str:
        """Text of token ids, control tokens by their names; bytes that are no UTF-8 as U+FFFD."""
        ids = [int(token) for token in tokens]
        return self.full.decode(ids, skip_special_tokens=False)

    def _find_bytes(self, token: int) -> bytes:
        if token in self._name_of:
            return self._name_of[token].encode()
        piece = self.full.id_to_token(token) if 0 <= token < self._vocab_size else None
        if piece is None:
            return b""
        if "ByteLevel" in self._decoder_kinds:
            table = _byte_of_character()
            return (
                bytes([table[character] for character in piece]) if all(c in table for c in piece) else piece.encode()
            )
        if (
            "ByteFallback" in self._decoder_kinds
            and len(piece) == 6
            and piece.startswith("<0x")
            and piece.endswith(">")
        ):
            return bytes([int(piece[3:5], 16)])
        if self._decoder_kinds & {"ByteFallback", "Metaspace", "Replace"}:
            return piece.replace("▁", " ").encode()
        return self.full.decode([token], skip_special_tokens=False).encode()


class _AdaptedVocabulary:
    """Any object with the four members of the backends' `Tokenizer`, as a `Vocabulary` without control tokens of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.special_tokens: Mapping[str, int] = dict(getattr(tokenizer, "special_tokens", {}))
        self.eos_tokens: tuple[int, ...] = tuple(getattr(tokenizer, "eos_tokens", ()))
        self.encode = tokenizer.encode
        self.decode = tokenizer.decode
        self.special_token = tokenizer.special_token

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.vocab_size)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(self.encode(text)) for text in texts]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        ids = list(self.encode(text))
        return ids, [len(self.decode(ids[: n + 1])) for n in range(len(ids))]

    def token_bytes(self, token: int) -> bytes:
        return str(self.decode([token])).encode()


def as_vocabulary(tokenizer: Any) -> Vocabulary:
    """A `Vocabulary` from what is at hand: one already, a `tokenizers.Tokenizer`, a transformers tokenizer, or any backend's `Tokenizer`."""
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return HuggingFaceVocabulary(tokenizer)
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    inner = getattr(tokenizer, "inner", None)  # a backend's wrapper around the same library
    if isinstance(inner, tokenizers.Tokenizer):
        return HuggingFaceVocabulary(inner)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(fast, tokenizers.Tokenizer):
        template = getattr(tokenizer, "chat_template", None)
        name = str(getattr(tokenizer, "name_or_path", ""))
        return HuggingFaceVocabulary(fast, name=name, chat_template=template if isinstance(template, str) else None)
    if all(hasattr(tokenizer, member) for member in ("encode", "decode", "special_token", "vocab_size")):
        return _AdaptedVocabulary(tokenizer)
    raise TypeError(
        f"{type(tokenizer).__name__} is no tokenizer: it needs encode, decode, special_token and vocab_size"
    )


@functools.lru_cache(maxsize=32)
def load_vocabulary(name: str | Path) -> HuggingFaceVocabulary:
    """The vocabulary of a model: a directory with `tokenizer.json`, that file itself, or a name on the Hugging Face hub. Cached.

    Raises FileNotFoundError for a path that holds no `tokenizer.json`, and OSError where a name cannot be fetched.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return HuggingFaceVocabulary(tokenizers.Tokenizer.from_file(str(path)), name=str(name))
    if path.suffix == ".json" or path.is_absolute() or str(name).startswith("."):
        raise FileNotFoundError(
            f"{path} does not exist: give a tokenizer.json, a directory that holds one, or a model's name"
        )
    try:
        fetched = tokenizers.Tokenizer.from_pretrained(str(name))
    except Exception as error:
        raise OSError(
            f"the tokenizer of {str(name)!r} could not be fetched ({error}); a local directory with tokenizer.json works too"
        ) from error
    return HuggingFaceVocabulary(fetched, name=str(name))


def byte_vocabulary(control_tokens: Sequence[str]) -> HuggingFaceVocabulary:
    """A vocabulary of bytes and the given control tokens: for tests, toy models, and for looking at a format without its tokenizer."""
    alphabet = sorted(_byte_of_character(), key=lambda character: _byte_of_character()[character])
    model = tokenizers.models.BPE(vocab={character: n for n, character in enumerate(alphabet)}, merges=[])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in control_tokens])
    return HuggingFaceVocabulary(made)
