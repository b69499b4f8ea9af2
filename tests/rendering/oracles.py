"""What renderers are compared with: real vocabularies, official chat templates, and a second implementation.

Vocabularies and the second implementation come from `tml-renderers`; chat templates are read as data from where TRL is installed, and from
the directory named by CALLSHEET_TEMPLATES (see `fetch_templates.py`) for those that TRL has not.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.rendering import Message, ToolSpec
from engine.rendering.families.template import compile_template
from engine.rendering.openai_format import to_openai


class OracleVocabulary:
    """A vocabulary compiled into tml-renderers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ids = [
            tokenizer.encode_special(name) for name in tokenizer.special_tokens()
        ]  # by short names; decoding gives the real ones
        self.special_tokens = {tokenizer.decode([token]): token for token in ids}
        self.eos_tokens = (tokenizer.encode_special(tokenizer.eos_token),)
        self._names = {token: name for name, token in self.special_tokens.items()}
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        return max(self.special_tokens.values()) + 1

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode_ordinary(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(self._tokenizer.encode_ordinary(text)) for text in texts]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        tokens = self.encode(text)
        ends, data = [], b""
        for token in tokens:
            data += self.token_bytes(token)
            ends.append(len(data.decode("utf-8", "replace")))
        return tokens, ends

    def decode(self, tokens: Any) -> str:
        return b"".join(self.token_bytes(int(token)) for token in tokens).decode("utf-8", "replace")

    def special_token(self, name: str) -> int:
        return self.special_tokens[name]

    def token_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            if token in self._names:
                self._bytes[token] = self._names[token].encode()
            else:
                try:
                    self._bytes[token] = bytes(self._tokenizer.decode_bytes([token]))
                except Exception:  # noqa: BLE001 - an id outside the vocabulary
                    self._bytes[token] = b""
        return self._bytes[token]


class TiktokenVocabulary(OracleVocabulary):
    """Llama 3's vocabulary, from the file in llama-models."""

    def __init__(self) -> None:
        import tiktoken

        spec = importlib.util.find_spec("llama_models")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        path = Path(next(iter(spec.submodule_search_locations))) / "llama3" / "tokenizer.model"
        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in path.read_bytes().splitlines()}
        named = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|finetune_right_pad_id|>": 4, "<|start_header_id|>": 6}
        named |= {"<|end_header_id|>": 7, "<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10}
        self.special_tokens = {name: len(ranks) + n for name, n in named.items()}
        pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        self._encoding = tiktoken.Encoding(
            "llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )
        self._names = {token: name for name, token in self.special_tokens.items()}
        self._bytes = {}
        self.eos_tokens = (self.special_tokens["<|end_of_text|>"],)

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encoding.encode_ordinary(text) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            try:
                self._bytes[token] = self._encoding.decode_single_token_bytes(token)
            except KeyError:
                self._bytes[token] = b""
        return self._bytes[token]


@functools.cache
def vocabulary(name: str) -> OracleVocabulary:
    """A vocabulary by the name of its class in tml-renderers (`Qwen3`, `KimiK25`, ...), or `Llama3`."""
    if name == "Llama3":
        return TiktokenVocabulary()
    tokenizers = pytest.importorskip("tml_renderers.tokenizers")
    return OracleVocabulary(getattr(tokenizers, f"{name}Tokenizer")())


@functools.cache
def template_source(name: str) -> str:
    """An official chat template."""
    spec = importlib.util.find_spec("trl")
    places = [Path(os.environ.get("CALLSHEET_TEMPLATES", Path.home() / ".cache" / "callsheet" / "templates"))]
    if spec is not None and spec.submodule_search_locations is not None:
        places.append(Path(next(iter(spec.submodule_search_locations))) / "chat_templates")
    for place in places:
        if (place / f"{name}.jinja").is_file():
            return (place / f"{name}.jinja").read_text(encoding="utf-8")
    pytest.skip(f"no template {name}.jinja: install trl, or run `python tests/rendering/fetch_templates.py`")


@functools.cache
def compiled(name: str) -> Any:
    return compile_template(template_source(name), mutable="Kimi" in name)


def official_text(
    name: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[ToolSpec] = (),
    string_arguments: bool = False,
    **variables: Any,
) -> str:
    """What the official template writes. `string_arguments`: this template wants the arguments of calls as JSON text."""
    dictionaries = [for_template(message, string_arguments=string_arguments) for message in messages]
    declared = {"tools": [tool.to_openai() for tool in tools]} if tools else {}
    return str(compiled(name).render(messages=dictionaries, **declared, **variables))


def for_template(message: Message, *, string_arguments: bool = False) -> dict[str, Any]:
    found = to_openai(message)
    found.pop("trainable", None)
    for call in found.get("tool_calls", ()):
        if not string_arguments:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if "reasoning_content" in found:
        found["thinking"] = found["reasoning_content"]
    if message.role == "assistant":
        found.setdefault("content", "")
        found["content"] = found["content"] or ""
    return found


def encode_official(text: str, vocabulary: Any) -> list[int]:
    """Tokenises a template's text as Hugging Face does: control strings are control tokens, the rest is encoded in between."""
    names = sorted(vocabulary.special_tokens, key=len, reverse=True)
    tokens: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
        if piece in vocabulary.special_tokens:
            tokens.append(vocabulary.special_tokens[piece])
        elif piece:
            tokens.extend(vocabulary.encode(piece))
    return tokens


def second_opinion(
    renderer: Any, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), **fields: Any
) -> list[int]:
    """The generation prompt of tml-renderers."""
    spans, _ = renderer.render_for_completion(_tml_messages(messages, tools))
    return [token for span in spans for token in span.span.int_tokens]


def second_examples(
    renderer: Any, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = ()
) -> list[tuple[list[int], list[float]]]:
    """The supervised examples of tml-renderers: tokens and unshifted weights."""
    examples = renderer.render_for_sft(_tml_messages(messages, tools))
    return [
        (
            [token for span in example.input_token_spans for token in span.span.int_tokens],
            list(example.per_token_loss_weight_unshifted),
        )
        for example in examples
    ]


def _tml_messages(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Any:
    chat = pytest.importorskip("tml_renderers.chat")
    dictionaries = [to_openai(message) for message in messages]
    for dictionary in dictionaries:
        dictionary.pop("trainable", None)
        thinking = dictionary.pop("reasoning_content", None)
        if thinking is not None:
            said = [{"type": "text", "text": dictionary["content"]}] if dictionary["content"] else []
            dictionary["content"] = [{"type": "thinking", "thinking": thinking}, *said]
    found = [message for item in chat.OpenAIMessage.from_oss_messages(dictionaries) for message in item.to_messages()]
    if tools:
        specs = [chat.ToolSpecJson("function", tool.name, tool.description, dict(tool.parameters)) for tool in tools]
        declare = chat.Message(chat.ToolDeclareJson(specs), chat.Author(chat.AuthorKind.System))
        found = [declare, *found]
    return chat.MessageList(found) if hasattr(chat, "MessageList") else found
