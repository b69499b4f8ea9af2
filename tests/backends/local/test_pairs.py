"""DPO on pairs that share their prompt: read once, never torn apart, and the same loss and step as one pair after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends import local
from engine.backends.values import AdamParams, Datum, Loss, ModelInput
from engine.training.custom import linearized, named_loss, scoring_datums

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.local
DPO = Loss("dpo", {"beta": 0.7})


def pairs(count: int) -> list[Datum]:
    rng = np.random.default_rng(0)
    data = []
    for _ in range(count):
        prompt = rng.integers(0, 200, rng.integers(1, 40))
        for _ in range(2):
            answer = rng.integers(0, 200, rng.integers(1, 30))
            tokens = np.concatenate([prompt, answer])
            weights = np.zeros(len(tokens) - 1, np.float32)
            weights[len(prompt) - 1 :] = 1.0
            reference = rng.normal(-5, 1, len(weights)).astype(np.float32) * weights
            inputs = {"target_tokens": tokens[1:].astype(np.int32), "weights": weights, "reference_logprobs": reference}
            data.append(Datum(ModelInput.from_tokens(tokens[:-1]), inputs))
    return data


async def stepped(model: Path, take: Callable[[Any], Any], **options: Any) -> tuple[Any, dict[str, float], Any]:
    """The pass's result, the optimizer's metrics, and logprobs after the step."""
    data = pairs(9)
    async with local.open(model, threads=1, **options) as backend:
        result = await take(backend)
        metrics = await backend.optim_step(AdamParams(1e-2)).result()
        after = await backend.forward(scoring_datums(data), Loss("cross_entropy")).result()
        return result, metrics, after.logprobs


@pytest.mark.parametrize("family", [None, "gemma3_text"])
def test_however_it_is_cut_a_dpo_pass_is_the_same(
    tiny: Path, other_family: Callable[[str], Path], family: str | None
) -> None:
    model, data = tiny if family is None else other_family(family), pairs(9)

    async def natively(backend: Any) -> Any:
        return await backend.forward_backward(data, DPO).result()

    async def as_custom(backend: Any) -> Any:
        scored = await backend.forward(scoring_datums(data), Loss("cross_entropy")).result()
        found = named_loss(DPO)(data, scored.logprobs)
        await backend.forward_backward(linearized(data, found.gradients), Loss("cross_entropy")).result()
        return found

    custom, wanted, moved = anyio.run(lambda: stepped(model, as_custom))
    for budget in (1, 150, 10_000):
        result, metrics, after = anyio.run(lambda budget=budget: stepped(model, natively, microbatch_tokens=budget))
        assert result.loss == pytest.approx(custom.loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
        for one, other in zip(after, moved, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)
        assert [len(each) for each in result.logprobs] == [datum.model_input.length for datum in data]
