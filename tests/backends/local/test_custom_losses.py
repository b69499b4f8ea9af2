"""Losses of one's own in one submission."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")


from engine.backends import local
from engine.backends.errors import BackendError, RequestRejected
from engine.backends.ports import CustomLossBackend
from engine.backends.values import AdamParams, Datum, Loss, ModelInput
from engine.training.custom import CustomLossResult, named_loss
from engine.training.preference import dpo_loss

pytestmark = [pytest.mark.local, pytest.mark.anyio]


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[Any]:
    async with local.open(model, threads=1, **options) as backend:
        yield backend


def policy_data(seed: int = 0, count: int = 6) -> list[Datum]:
    random = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        length = int(random.integers(4, 12))
        mask = (np.arange(length) >= 2).astype(np.float32)
        data.append(
            Datum(
                ModelInput.from_tokens(random.integers(0, 256, length)),
                {
                    "target_tokens": random.integers(0, 256, length).astype(np.int32),
                    "logprobs": (-5 - random.random(length)).astype(np.float32) * mask,
                    "advantages": random.normal(size=length).astype(np.float32) * mask,
                    "mask": mask,
                    "weights": mask,
                    "reference_logprobs": (-5 - random.random(length)).astype(np.float32) * mask,
                },
            )
        )
    return data


async def stepped(backend: Any, loss: Any) -> tuple[Any, Sequence[np.ndarray]]:
    """The result of a pass, and the logprobs after an optimizer step on it."""
    data = policy_data()
    if isinstance(loss, Loss):
        result = await backend.forward_backward(data, loss).result()
    else:
        result = await backend.forward_backward_custom(data, loss).result()
    await backend.optim_step(AdamParams(1e-2)).result()
    after = await backend.forward(data, Loss("cross_entropy")).result()
    return result, after.logprobs


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("microbatch_tokens", [None, 24])
@pytest.mark.parametrize("name", ["ppo", "gspo", "m2po", "dpo", "kl_k2"])
async def test_a_loss_given_as_a_function_is_the_loss(name: str, microbatch_tokens: int | None, tiny: Path) -> None:
    """In one pass where it fits, in two where it does not: the same value, logprobs and step."""
    outcomes = []
    for loss in (Loss(name), named_loss(Loss(name))):
        async with opened(tiny, microbatch_tokens=microbatch_tokens) as backend:
            assert isinstance(backend, CustomLossBackend)
            outcomes.append(await stepped(backend, loss))
    (native, native_after), (own, own_after) = outcomes
    assert own.loss == pytest.approx(native.loss, rel=1e-4)
    for one, other in zip([*native.logprobs, *native_after], [*own.logprobs, *own_after], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_metrics_and_errors_of_a_loss_of_ones_own(tiny: Path) -> None:
    def broken(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> CustomLossResult:
        gradients = [np.zeros(len(each)) for each in logprobs]
        gradients[3][1] = np.nan
        return CustomLossResult(0.0, gradients)

    async with opened(tiny) as backend:
        result = await backend.forward_backward_custom(policy_data(), dpo_loss()).result()
        assert {"accuracy", "margin", "dpo_loss"} <= set(result.metrics)
        await backend.optim_step(AdamParams(1e-3)).result()
        with pytest.raises(ValueError, match="datum 3: the custom loss's gradient is nan at position 1"):
            await backend.forward_backward_custom(policy_data(), broken).result()
        with pytest.raises(BackendError, match="an earlier pass failed"):
            await backend.optim_step(AdamParams(1e-3)).result()
        assert backend.version == 1
        await stepped(backend, dpo_loss())  # and it goes on
        with pytest.raises(RequestRejected, match="no datums"):
            backend.forward_backward_custom([], dpo_loss())
