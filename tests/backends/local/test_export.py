"""Exported weights: transformers and peft load them by themselves and give the log-probabilities that the backend gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.backends import local
from engine.backends.errors import BackendError, UnusableState
from engine.backends.values import AdamParams, Datum, Loss, ModelInput

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.local, pytest.mark.anyio]

TOKENS = np.array([65, 66, 67, 70, 32, 104, 105, 100, 99, 90, 91, 65], np.int32)
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def directory(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def make_model(directory: Path, tokenizer: Tokenizer, kind: str) -> Path:
    """A small model of a family, its output head tied to the embedding or not."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    if kind == "qwen3":
        module: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8, tie_word_embeddings=True))
    else:
        module = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=kind == "tied"))
    module.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


async def trained(model: Path, state: Path, **options: Any) -> np.ndarray[Any, Any]:
    """Trains a few steps, saves the state, gives the logprobs of TOKENS."""
    directory(state)
    datum = Datum(
        ModelInput.from_tokens(TOKENS[:-1]), {"target_tokens": TOKENS[1:], "weights": np.ones(11, np.float32)}
    )
    async with local.open(model, threads=1, **options) as backend:
        for _ in range(3):
            backend.forward_backward([datum], Loss("cross_entropy"))
            await backend.optim_step(AdamParams(2e-2)).result()
        await backend.save_state(state).result()
        snapshot = await backend.snapshot().result()
        return (await backend.compute_logprobs(snapshot, ModelInput.from_tokens(TOKENS)))[1:]


def of_transformers(module: Any) -> np.ndarray[Any, Any]:
    """Its own forward pass, by nothing of ours."""
    ids = torch.from_numpy(TOKENS.astype(np.int64))[None]
    with torch.no_grad():
        logprobs = module(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0].numpy()


def load(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.parametrize("lora_rank", [None, 4])
@pytest.mark.parametrize("kind", ["tied", "untied", "qwen3"])
async def test_a_merged_model_gives_the_trainers_logprobs(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, lora_rank: int | None
) -> None:
    model = make_model(tmp_path / "model", tokenizer, kind)
    ours = await trained(model, tmp_path / "state", lora_rank=lora_rank)
    assert np.abs(ours - of_transformers(load(model))).max() > 0.05  # it has moved
    written = local.export(tmp_path / "state", model, tmp_path / "out")
    merged = load(tmp_path / "out")
    np.testing.assert_allclose(of_transformers(merged), ours, atol=2e-5)
    assert merged.config.tie_word_embeddings == (kind != "untied")
    assert (written.version, written.form, written.chat_template) == (3, "merged", True)
    assert written.parameters == sum(tensor.numel() for tensor in merged.parameters())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    # It is a model like any other: the backend opens it and goes on from the same place.
    async with local.open(tmp_path / "out", threads=1) as backend:
        snapshot = await backend.snapshot().result()
        again = (await backend.compute_logprobs(snapshot, ModelInput.from_tokens(TOKENS)))[1:]
    np.testing.assert_allclose(again, ours, atol=2e-5)


@pytest.mark.parametrize("kind", ["tied", "qwen3"])
async def test_peft_loads_the_adapters_and_gives_the_trainers_logprobs(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    import warnings

    from peft import PeftModel

    model = make_model(tmp_path / "model", tokenizer, kind)
    ours = await trained(model, tmp_path / "state", lora_rank=4, lora_alpha=10.0)
    written = local.export(tmp_path / "state", model, tmp_path / "out", form="peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 10.0, str(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        loaded: Any = PeftModel.from_pretrained(load(model), tmp_path / "out").eval()
    np.testing.assert_allclose(of_transformers(loaded), ours, atol=2e-5)
    # rank · (inputs + outputs) of q, k, v, o, gate, up, down in two layers
    sides = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48)
    assert written.parameters == 2 * 4 * sides
    assert {"tokenizer.json", "chat_template.jinja", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


async def test_bfloat16_is_what_the_run_computed_in(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = make_model(tmp_path / "model", tokenizer, "tied")
    await trained(model, tmp_path / "state", dtype="bfloat16")
    local.export(tmp_path / "state", model, tmp_path / "out")
    assert next(load(tmp_path / "out").parameters()).dtype == torch.bfloat16
    local.export(tmp_path / "state", model, tmp_path / "exact", dtype="float32")
    assert next(load(tmp_path / "exact").parameters()).dtype == torch.float32


async def test_a_snapshot_can_be_exported_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = make_model(tmp_path / "model", tokenizer, "tied")
    directory(tmp_path / "snapshot")
    async with local.open(model, threads=1) as backend:
        await backend.save_snapshot(await backend.snapshot().result(), tmp_path / "snapshot").result()
    assert local.export(tmp_path / "snapshot", model, tmp_path / "out").version == 0
    np.testing.assert_allclose(of_transformers(load(tmp_path / "out")), of_transformers(load(model)), atol=1e-7)


async def test_what_cannot_be_exported(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model", tokenizer, "tied")
    other = make_model(tmp_path / "other", tokenizer, "untied")
    state, adapters = tmp_path / "state", tmp_path / "adapters"
    await trained(model, state)
    await trained(model, adapters, lora_rank=2)

    def refused(kind: type[Exception], message: str, *args: Any, **options: Any) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(kind, match=message) as caught:
            local.export(*args, **options)
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    out = tmp_path / "out"
    refused(BackendError, "model exists already", state, model, model)
    refused(BackendError, "holds all weights of the model, and no adapters", state, model, out, form="peft")
    refused(BackendError, "dtype 'float8' is not one of", state, model, out, dtype="float8")
    refused(BackendError, "there is no such directory", state, tmp_path / "nothing", out)
    refused(UnusableState, "of another model than", state, other, out)
    refused(UnusableState, "holds no training state or snapshot", model, model, out)
    other_base = make_model(tmp_path / "third", tokenizer, "tied")
    _shift(other_base)
    refused(UnusableState, "of another model than", adapters, other_base, out)

    def full_disk(*args: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full_disk)
    refused(OSError, "No space left", state, model, out)
    weights = state / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    refused(UnusableState, "is damaged", state, model, out)


def _shift(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors: Mapping[str, Any] = load_file(model / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
