"""Tiny models for the local backend's tests: made once a session, random weights, no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.backends import local


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Real clocks: a thread at work looks idle to a virtual one."""
    return request.param, {}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Every byte a token, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|pad|>", "<|user|>", "<|end|>"])
    return made


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A Llama of 40 thousand parameters, whose query heads share key-value heads; a wide initialisation makes it opinionated."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    return local.tiny_llama(
        directory, tokenizer, hidden=32, layers=2, heads=4, kv_heads=2, context=96, initializer_range=0.15
    )


@pytest.fixture(scope="session")
def other_family(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Callable[[str], Path]:
    """Models that the Llama forward pass does not cover, by family name."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if family in made:
            return made[family]
        shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        limits: dict[str, Any] = {"max_position_embeddings": 96, "vocab_size": tokenizer.get_vocab_size()}
        ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        if family == "gpt2":
            shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
            limits.pop("max_position_embeddings")
        else:
            shape |= {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
        if family == "gemma3_text":
            shape |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
        config = AutoConfig.for_model(family, **shape, **limits, **ends, initializer_range=0.15)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
        directory = tmp_path_factory.mktemp("models") / family
        model.save_pretrained(directory)
        tokenizer.save(str(directory / "tokenizer.json"))
        made[family] = directory
        return directory

    return make
