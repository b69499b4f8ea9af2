"""The local backend's differentiable losses against the written-out ones, in float64, and through a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends.errors import RequestRejected
from engine.backends.values import Datum, Loss, ModelInput
from engine.training.custom import linearized, named_loss, scoring_datums
from engine.training.losses import LOSSES, evaluate
from tests.training.policies import policy_data

pytestmark = pytest.mark.local
torch = pytest.importorskip("torch")

OTHER_PARAMS: dict[str, dict[str, float]] = {
    "ppo": {"clip_low_threshold": 0.5, "clip_high_threshold": 1.6},
    "gspo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
    "sapo": {"tau_positive": 2.0, "tau_negative": 0.7},
    "dual_clip_ppo": {"dual_clip": 1.3},
    "opsm": {"delta": -0.2},
    "m2po": {"tau": 0.5},
    "dpo": {"beta": 2.0},
    "kl_k2": {"coef": 0.3},
}


def test_the_names_fields_and_parameters_agree() -> None:
    from engine.backends.local.losses import LOSSES as DIFFERENTIABLE

    assert set(DIFFERENTIABLE) == set(LOSSES)
    for name, spec in DIFFERENTIABLE.items():
        assert dict(spec.params) == LOSSES[name].params, name
        assert set(spec.reads) == set(LOSSES[name].reads), name


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("defaults", [True, False])
def test_value_and_gradient_are_the_written_out_ones(name: str, seed: int, defaults: bool) -> None:
    from engine.backends.local.loss_formulas import LossBatch
    from engine.backends.local.losses import LOSSES as DIFFERENTIABLE

    if not defaults and name not in OTHER_PARAMS:
        seed += 100
    data, logprobs = policy_data(seed, per_token=seed % 2 == 1)
    spec, params = DIFFERENTIABLE[name], {} if defaults else OTHER_PARAMS.get(name, {})
    logprobs_N = torch.tensor(np.concatenate(logprobs), requires_grad=True)
    inputs = {
        field: torch.tensor(np.concatenate([datum.loss_inputs[field] for datum in data]), dtype=torch.float64)
        for field in spec.reads
    }
    datum_N = torch.repeat_interleave(torch.tensor([len(each) for each in logprobs]))
    loss_N, metrics = spec.function(LossBatch(logprobs_N, inputs, datum_N, {**spec.params, **params}))
    (gradient_N,) = torch.autograd.grad(loss_N.sum(), logprobs_N)
    value, gradients = evaluate(Loss(name, params), data, logprobs)
    assert loss_N.shape == logprobs_N.shape
    assert float(loss_N.detach().sum()) == pytest.approx(value)
    np.testing.assert_allclose(gradient_N.numpy(), np.concatenate(gradients), atol=1e-12)
    # Where the scale is zero a token must have no gradient: the backend leaves such tokens out of the backward pass.
    assert not gradient_N.numpy()[inputs[spec.scale].numpy() == 0].any()
    assert all(0 <= float(metric) <= len(logprobs_N) for metric in metrics.values())


# ---- through a model -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from engine.backends import local

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    directory = tmp_path_factory.mktemp("models") / "tiny"
    return local.tiny_llama(
        directory, tokenizer, hidden=32, layers=2, heads=4, kv_heads=2, context=96, initializer_range=0.15
    )


def float32(data: list[Datum]) -> list[Datum]:
    return [
        Datum(
            datum.model_input,
            {n: v if n == "target_tokens" else np.asarray(v, np.float32) for n, v in datum.loss_inputs.items()},
        )
        for datum in data
    ]


def near_policy(data: list[Datum], logprobs: Any) -> list[Datum]:
    """The datums with a sampler near the policy, so that no ratio is extreme."""
    random = np.random.default_rng(0)
    moved = [each + 0.3 * random.normal(size=len(each)) for each in logprobs]
    return [
        Datum(
            datum.model_input,
            {
                **datum.loss_inputs,
                **{
                    field: (old + 0.1 * number) * datum.loss_inputs["mask"]
                    for number, field in enumerate(("logprobs", "proximal_logprobs", "reference_logprobs"))
                },
            },
        )
        for datum, old in zip(data, moved, strict=True)
    ]


async def gradient_norm(backend: Any, data: list[Datum], loss: Loss) -> tuple[Any, float]:
    from engine.backends.values import AdamParams

    result = await backend.forward_backward(data, loss).result()
    metrics = await backend.optim_step(AdamParams(learning_rate=0.0)).result()
    return result, metrics["grad_norm"]


@pytest.mark.parametrize("name", ["ppo", "gspo", "topr", "opsm", "m2po", "dpo", "kl_k3+"])
def test_a_backend_with_small_microbatches_computes_the_same_loss_and_gradient(tiny: Path, name: str) -> None:
    """Whole, split, and as a custom loss through cross-entropy."""
    from engine.backends import local

    async def main() -> list[tuple[Any, float]]:
        found = []
        data, _ = policy_data(0, lengths=(5, 2, 8, 3, 9, 1))
        for microbatch_tokens in (10_000, 16):
            async with local.open(tiny, microbatch_tokens=microbatch_tokens) as backend:
                scored = await backend.forward(scoring_datums(float32(data)), Loss("cross_entropy")).result()
                ready = float32(near_policy(data, scored.logprobs))
                params = {"tau": 0.05} if name == "m2po" else {}
                found.append(await gradient_norm(backend, ready, Loss(name, params)))
                custom = named_loss(Loss(name, params))(ready, scored.logprobs)
                _, norm = await gradient_norm(backend, linearized(ready, custom.gradients), Loss("cross_entropy"))
                found.append((custom, norm))
        return found

    whole, custom, split, _ = anyio.run(main)
    assert whole[0].loss == pytest.approx(custom[0].loss, rel=1e-4)
    assert whole[0].loss == pytest.approx(split[0].loss, rel=1e-4)
    assert whole[1] > 1e-3
    assert whole[1] == pytest.approx(custom[1], rel=1e-3)
    assert whole[1] == pytest.approx(split[1], rel=1e-3)
    for one, other in zip(whole[0].logprobs, split[0].logprobs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert whole[0].metrics == pytest.approx(split[0].metrics, rel=1e-4)


def test_a_lonely_datum_is_not_a_pair(tiny: Path) -> None:
    from engine.backends import local

    async def main() -> None:
        data = float32(policy_data(0)[0])[:3]
        async with local.open(tiny) as backend:
            with pytest.raises(RequestRejected, match="takes datums in pairs, but there are 3: datum 2 is alone"):
                backend.forward_backward(data, Loss("dpo"))

    anyio.run(main)


def test_input_without_a_mask_is_refused_by_name(tiny: Path) -> None:
    from engine.backends import local

    async def main() -> None:
        datum = Datum(
            ModelInput.from_tokens([1, 2]),
            {"target_tokens": np.array([2, 3]), "logprobs": np.zeros(2), "advantages": np.zeros(2)},
        )
        async with local.open(tiny) as backend:
            with pytest.raises(
                RequestRejected, match="datum 0: loss_inputs has no 'mask', which the loss 'gspo' reads"
            ):
                backend.forward_backward([datum], Loss("gspo"))

    anyio.run(main)
