"""Step metrics against their definitions, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.backends.values import Datum, ModelInput
from engine.training.metrics import StepSums, step_metrics, trained_tokens
from tests.training.policies import policy_data


def test_definitions() -> None:
    data, logprobs = policy_data(0)
    found = step_metrics(data, [each.astype(np.float32) for each in logprobs], clip_low=0.2, clip_high=0.28)
    rows = [
        (old, new, advantage)
        for datum, lp in zip(data, logprobs, strict=True)
        for old, new, advantage, mask in zip(
            datum.loss_inputs["logprobs"], lp, datum.loss_inputs["advantages"], datum.loss_inputs["mask"], strict=True
        )
        if mask
    ]
    weights = [math.exp(new - old) for old, new, _ in rows]
    clipped = [
        (advantage > 0 and weight > 1.28) or (advantage < 0 and weight < 0.8)
        for weight, (_, _, advantage) in zip(weights, rows, strict=True)
    ]
    assert 0 < sum(clipped) < len(rows)
    assert found == pytest.approx(
        {
            "optim/kl_sample_train_v1": sum(old - new for old, new, _ in rows) / len(rows),
            "optim/kl_sample_train_v2": sum((old - new) ** 2 for old, new, _ in rows) / 2 / len(rows),
            "optim/kl_sample_train_v3": sum(w - 1 - math.log(w) for w in weights) / len(rows),
            "optim/effective_sample_size": sum(weights) ** 2 / sum(w * w for w in weights) / len(rows),
            "optim/clip_fraction": sum(clipped) / len(rows),
            "optim/entropy": -sum(old for old, _, _ in rows) / len(rows),
        },
        rel=1e-5,
    )


def test_on_policy() -> None:
    data, _ = policy_data(1)
    found = step_metrics(data, [datum.loss_inputs["logprobs"] for datum in data])
    assert found.pop("optim/entropy") > 0
    assert found == {
        "optim/kl_sample_train_v1": 0,
        "optim/kl_sample_train_v2": 0,
        "optim/kl_sample_train_v3": 0,
        "optim/effective_sample_size": pytest.approx(1),
        "optim/clip_fraction": 0,
    }


def test_one_token_with_all_the_weight_counts_as_one_sample() -> None:
    inputs = {"logprobs": np.full(8, -900.0), "advantages": np.ones(8), "mask": np.ones(8)}
    new = np.full(8, -900.0)
    new[0] = -1.0  # far beyond what an exponential holds
    found = step_metrics([Datum(ModelInput.from_tokens(range(8)), inputs)], [new])
    assert found["optim/effective_sample_size"] == pytest.approx(1 / 8)


@pytest.mark.parametrize("order", [1, -1])
def test_a_step_in_parts_is_the_step(order: int) -> None:
    """Whether the largest weight comes first or last."""
    data, logprobs = policy_data(4)
    sums = StepSums(clip_high=0.28)
    for part in (slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 4))[::order]:
        sums.add(data[part], logprobs[part])
    assert sums.metrics() == pytest.approx(step_metrics(data, logprobs, clip_high=0.28))


def test_nothing_trained_and_no_mask() -> None:
    assert step_metrics([], []) == {}
    silent = Datum(
        ModelInput.from_tokens([1]), {"logprobs": np.zeros(1), "advantages": np.zeros(1), "mask": np.zeros(1)}
    )
    assert step_metrics([silent], [np.zeros(1)]) == {}
    data, logprobs = policy_data(2)
    unmasked = [
        Datum(datum.model_input, {name: values for name, values in datum.loss_inputs.items() if name != "mask"})
        for datum in data
    ]
    assert step_metrics(unmasked, logprobs) == step_metrics(data, logprobs)


def test_what_does_not_fit_is_named() -> None:
    data, logprobs = policy_data(3)
    with pytest.raises(ValueError, match="4 datums but logprobs for 2"):
        trained_tokens(data, logprobs[:2])
    with pytest.raises(ValueError, match=r"datum 1 has [0-9]+ positions but 11 new logprobs"):
        trained_tokens(data, [logprobs[0], np.zeros(11), *logprobs[2:]])
