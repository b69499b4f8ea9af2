"""Custom losses through cross-entropy, on a policy small enough to differentiate by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.backends.values import Datum, Loss
from engine.training.custom import CustomLoss, CustomLossResult, function_loss, linearized, named_loss, scoring_datums
from engine.training.losses import LOSSES, LossTokens, evaluate
from engine.training.preference import dpo_loss
from tests.training.policies import policy_data


class Bigram:
    """A policy with a table of logits, next token by last token, and the one loss every backend has."""

    def __init__(self) -> None:
        self.logits = np.random.default_rng(0).normal(size=(50, 50))

    def forward(self, data: list[Datum]) -> list[Any]:
        table = self.logits - np.logaddexp.reduce(self.logits, axis=1, keepdims=True)
        return [table[datum.model_input.tokens, datum.loss_inputs["target_tokens"]] for datum in data]

    def backward(self, data: list[Datum]) -> Any:
        """∂(Σ −weight·log π)/∂logits."""
        probabilities = np.exp(self.logits - np.logaddexp.reduce(self.logits, axis=1, keepdims=True))
        gradient = np.zeros_like(self.logits)
        for datum in data:
            for token, target, weight in zip(
                datum.model_input.tokens, datum.loss_inputs["target_tokens"], datum.loss_inputs["weights"], strict=True
            ):
                gradient[token] += weight * probabilities[token]
                gradient[token, target] -= weight
        return gradient

    def custom(self, data: list[Datum], loss: CustomLoss) -> tuple[CustomLossResult, Any]:
        result = loss(data, self.forward(scoring_datums(data)))
        return result, self.backward(linearized(data, result.gradients))


def entropy_and_pairs(data: Any, logprobs: Any) -> CustomLossResult:
    """A loss no backend has: the squared difference of neighbouring datums' mean logprobs."""
    means = [float(np.mean(each)) for each in logprobs]
    gap = means[0] - means[1]
    return CustomLossResult(
        gap**2,
        [np.full(len(logprobs[0]), 2 * gap / len(logprobs[0])), np.full(len(logprobs[1]), -2 * gap / len(logprobs[1]))],
    )


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        *((named_loss(Loss(name)), 4) for name in ("importance_sampling", "ppo", "gspo", "sapo", "dro", "dpo")),
        (dpo_loss(0.5), 4),
        (entropy_and_pairs, 2),
    ],
)
def test_the_gradient_is_that_of_the_loss(loss: CustomLoss, count: int) -> None:
    data, _ = policy_data(0)
    policy, data = Bigram(), data[:count]
    result, gradient = policy.custom(data, loss)
    assert np.isfinite(result.loss)
    step, touched = 1e-5, np.argwhere(np.abs(gradient) > 1e-3)[:25]
    assert len(touched)
    for row, column in touched:
        values = []
        for change in (step, -step):
            policy.logits[row, column] += change
            values.append(loss(data, policy.forward(data)).loss)
            policy.logits[row, column] -= change
        assert gradient[row, column] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-4)


def test_named_and_function_losses_are_the_reference() -> None:
    data, logprobs = policy_data(1)
    value, gradients = evaluate(Loss("ppo", {"clip_high_threshold": 1.5}), data, logprobs)
    by_function = function_loss(LOSSES["ppo"].function, clip_high_threshold=1.5)
    for loss in (named_loss(Loss("ppo", {"clip_high_threshold": 1.5})), by_function):
        result = loss(data, logprobs)
        assert result.loss == value
        np.testing.assert_array_equal(np.concatenate(result.gradients), np.concatenate(gradients))


def test_a_function_of_ones_own() -> None:
    def unclipped(tokens: LossTokens, power: float) -> Any:
        loss = -(tokens.ratio**power) * tokens.inputs["advantages"]
        return loss, power * loss

    data, logprobs = policy_data(2)
    once = function_loss(unclipped, ("logprobs", "advantages"), power=1.0)(data, logprobs)
    np.testing.assert_allclose(once.loss, evaluate(Loss("importance_sampling"), data, logprobs)[0])


def test_what_does_not_fit_is_named() -> None:
    data, logprobs = policy_data(3)
    gradients = [np.zeros(len(each)) for each in logprobs]
    with pytest.raises(ValueError, match="4 datums but gradients for 3"):
        linearized(data, gradients[:3])
    with pytest.raises(ValueError, match=r"datum 0 has [0-9]+ positions but a gradient of shape \(1,\)"):
        linearized(data, [np.zeros(1), *gradients[1:]])
    gradients[3][1] = np.nan
    with pytest.raises(ValueError, match="datum 3: the custom loss's gradient is nan at position 1"):
        linearized(data, gradients)
