"""Any loss on any backend: a function of log-probabilities, through the one loss every backend has.

The gradient of a loss L(log π) is Σ_t g_t·∇log π_t with g = ∂L/∂log π. That is the gradient of −Σ_t weight_t·log π_t at weight = −g: cross-entropy with
weights. So:

    1. `forward(scoring_datums(data), Loss("cross_entropy"))` gives log π of the targets,
    2. the custom loss gives its value and g,
    3. `forward_backward(linearized(data, g), Loss("cross_entropy"))` accumulates exactly L's gradient.

The cost is one forward pass more than a loss the backend knows itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, Loss
from engine.training.losses import POLICY_FIELDS, LossFunction, evaluate, loss_tokens, split_by_datum


@attrs.frozen(eq=False)
class CustomLossResult:
    """What a custom loss found."""

    loss: float
    gradients: Sequence[NDArray[Any]]
    """∂loss/∂log π, one array (T,) for each datum."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)


CustomLoss = Callable[[Sequence[Datum], Sequence[NDArray[Any]]], CustomLossResult]
"""From datums and the current policy's logprobs of their targets, one array (T,) each. It sees the whole pass, so it may compare datums."""


def named_loss(loss: Loss) -> CustomLoss:
    """A loss of `engine.training.losses`, for backends that do not have it themselves."""

    def custom(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
        return CustomLossResult(*evaluate(loss, data, logprobs))

    return custom


def function_loss(function: LossFunction, reads: Sequence[str] = POLICY_FIELDS, **params: float) -> CustomLoss:
    """A loss from a function of `LossTokens` that returns the loss of each token and the gradient; `reads` names the arrays it needs."""

    def custom(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
        loss_N, gradient_N = function(loss_tokens(data, logprobs, reads), **params)
        return CustomLossResult(float(loss_N.sum()), split_by_datum(gradient_N, logprobs))

    return custom


def scoring_datums(data: Sequence[Datum]) -> list[Datum]:
    """Datums that ask a cross-entropy pass for nothing but the logprobs of the targets."""
    return [
        Datum(
            datum.model_input,
            {
                "target_tokens": datum.loss_inputs["target_tokens"],
                "weights": np.zeros(len(datum.loss_inputs["target_tokens"]), np.float32),
            },
        )
        for datum in data
    ]


def linearized(data: Sequence[Datum], gradients: Sequence[NDArray[Any]]) -> list[Datum]:
    """Datums whose cross-entropy has the gradient of a custom loss: weights −g.

    Raises ValueError, naming the datum, for a gradient of another length or one that is not finite.
    """
    if len(data) != len(gradients):
        raise ValueError(f"there are {len(data)} datums but gradients for {len(gradients)}")
    datums = []
    for index, (datum, gradient_T) in enumerate(zip(data, gradients, strict=True)):
        targets = datum.loss_inputs["target_tokens"]
        if np.shape(gradient_T) != (len(targets),):
            raise ValueError(
                f"datum {index} has {len(targets)} positions but a gradient of shape {np.shape(gradient_T)}"
            )
        if not np.isfinite(gradient_T).all():
            at = int(np.flatnonzero(~np.isfinite(gradient_T))[0])
            raise ValueError(f"datum {index}: the custom loss's gradient is {gradient_T[at]} at position {at}")
        datums.append(
            Datum(datum.model_input, {"target_tokens": targets, "weights": -np.asarray(gradient_T, np.float32)})
        )
    return datums
