"""The local sentence encoder, on a tiny BERT made here: beside transformers' own forward pass, and what its files say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends.errors import BackendError
from engine.backends.local.encoder import open_encoder
from engine.retrieval import conformance

pytest.importorskip("torch")
pytestmark = pytest.mark.local

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *[f"##{letter}" for letter in "abcdefghij"], ":"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    directory = tmp_path_factory.mktemp("encoder")
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture
def stating(model: Path, tmp_path: Path) -> Iterator[Any]:
    """The model with files beside it."""
    import shutil

    def state(**files: Any) -> Path:
        directory = tmp_path / "stating"
        shutil.copytree(model, directory)
        (directory / "1_Pooling").mkdir()
        for name, value in files.items():
            path = {
                "pooling": "1_Pooling/config.json",
                "st": "config_sentence_transformers.json",
                "bert": "sentence_bert_config.json",
            }[name]
            (directory / path).write_text(json.dumps(value))
        return directory

    return state


@pytest.mark.anyio
@pytest.mark.parametrize(
    "check", [conformance.embeddings_are_well_formed, conformance.texts_alone_decide], ids=lambda check: check.__name__
)
async def test_conformance(model: Path, check: Any) -> None:
    """All but `likeness_shows`: these weights were drawn at random."""
    async with open_encoder(model, threads=1, batch_size=2) as encoder:
        await check(encoder)


def by_hand(model: Path, text: str, pooling: str) -> np.ndarray[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt", truncation=True, max_length=24)
    with torch.no_grad():
        states = AutoModel.from_pretrained(model)(**encoded).last_hidden_state[0].numpy()
    pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    return pooled / np.linalg.norm(pooled)


@pytest.mark.anyio
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
async def test_equals_a_forward_pass_of_one_text(model: Path, pooling: Any) -> None:
    texts = ["a b c", "abc def", "j", "a " * 50]
    async with open_encoder(model, pooling=pooling, threads=1) as encoder:
        found = await encoder.embed(texts)
    for text, embedding in zip(texts, found, strict=True):
        np.testing.assert_allclose(embedding, by_hand(model, text, pooling), atol=1e-5)


@pytest.mark.anyio
async def test_one_at_a_time_no_bit_depends_on_company(model: Path) -> None:
    texts = ["a b c d e", "a", "b c", "abcdef abc", "j i h"]
    async with open_encoder(model, batch_size=1, threads=1) as encoder:
        whole = await encoder.embed(texts)
        alone: dict[int, Any] = {}

        async def one(index: int) -> None:
            alone[index] = (await encoder.embed([texts[index]]))[0]

        async with anyio.create_task_group() as group:
            for index in range(len(texts)):
                group.start_soon(one, index)
    for index in range(len(texts)):
        assert np.array_equal(whole[index], alone[index])


@pytest.mark.anyio
async def test_what_the_model_says_is_done(stating: Any) -> None:
    directory = stating(
        pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        st={"prompts": {"query": "a: ", "document": "b: "}},
        bert={"max_seq_length": 6},
    )
    async with open_encoder(directory, threads=1) as encoder:
        assert (encoder.settings.pooling, encoder.settings.max_length) == ("cls", 6)
        (query,) = await encoder.embed(["c d"], purpose="query")
        (document,) = await encoder.embed(["c d"])
        long, longer = await encoder.embed(["c d e f g", "c d e f g h i j"])
    np.testing.assert_allclose(query, by_hand(directory, "a: c d", "cls"), atol=1e-5)
    np.testing.assert_allclose(document, by_hand(directory, "b: c d", "cls"), atol=1e-5)
    np.testing.assert_allclose(long, longer, atol=1e-6)  # cut at six tokens, [CLS] and [SEP] among them
    async with open_encoder(directory, threads=1, pooling="mean", query_prefix="", max_length=20) as encoder:
        (query,) = await encoder.embed(["c d"], purpose="query")
    np.testing.assert_allclose(query, by_hand(directory, "c d", "mean"), atol=1e-5)


@pytest.mark.anyio
async def test_a_pooling_that_is_not_offered_is_said(stating: Any) -> None:
    directory = stating(pooling={"pooling_mode_max_tokens": True})
    with pytest.raises(BackendError, match="pools by pooling_mode_max_tokens"):
        async with open_encoder(directory):
            pass


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
async def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(BackendError, match="no encoder"):
        async with open_encoder(name):
            pass


@pytest.mark.anyio
async def test_closing_ends_what_waits(model: Path) -> None:
    async with open_encoder(model, threads=1) as encoder:
        pass
    with pytest.raises(BackendError, match="closed"):
        await encoder.embed(["a"])


@pytest.mark.anyio
async def test_a_failure_reaches_whoever_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody who asks later."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OverflowError("too much")

    failed = []
    async with open_encoder(model, threads=1) as encoder:

        async def ask(text: str) -> None:
            try:
                await encoder.embed([text])
            except OverflowError:
                failed.append(text)

        with monkeypatch.context() as patch:
            patch.setattr(encoder, "_tokenizer", refuse)
            async with anyio.create_task_group() as group:
                for text in "abc":
                    group.start_soon(ask, text)
        assert sorted(failed) == ["a", "b", "c"]
        assert (await encoder.embed(["a"])).shape == (1, 16)
