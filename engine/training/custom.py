"""Any loss on any backend: a function of log-probabilities, through the one loss every backend has.

The gradient of a loss L(log π) is Σ_t g_t·∇log π_t with g = ∂L/∂log π. That is the gradient of −Σ_t weight_t·log π_t at weight = −g: cross-entropy with
weights. So:

    1. `forward(scoring_datums(data), Loss("cross_entropy"))` gives log π of the targets,
    2. the custom loss gives its value and g,
    3. `forward_backward(linearized(data, g), Loss("cross_entropy"))` accumulates exactly L's gradient.

The cost is one forward pass more than a loss the backend knows itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, Loss
from engine.training.advantages import Scope
from engine.training.losses import POLICY_FIELDS, LossFunction, evaluate, find_formula, loss_tokens, split_by_datum


@attrs.frozen(eq=False)
class CustomLossResult:
    """What a custom loss found."""

    loss: float
    gradients: Sequence[NDArray[Any]]
    """∂loss/∂log π, one array (T,) for each datum."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)


CustomLoss = Callable[[Sequence[Datum], Sequence[NDArray[Any]]], CustomLossResult]
"""From datums and the current policy's logprobs of their targets, one array (T,) each. It sees the whole step, so it may compare datums; one that does not
may say so (`Declared`, or attributes of the same names)."""


@attrs.frozen(eq=False)
class Declared:
    """A custom loss that says what it needs, so that nothing has to be assumed."""

    function: CustomLoss
    scope: Scope
    """`group`: the loss of a datum depends on its own minibatch alone (on itself, or on the pair it is of), so minibatches are worked on as they come.
    `step`: on any of the step's."""
    reads: tuple[str, ...] = ()
    """Arrays of a datum that it reads."""
    name: str = "custom"

    def __call__(self, data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
        """See `CustomLoss`."""
        return self.function(data, logprobs)


def declared(loss: CustomLoss) -> Declared:
    """The loss with its attributes `scope`, `reads` and `name`; without them it is taken to need the whole step, which is always right."""
    if isinstance(loss, Declared):
        return loss
    scope: Scope = getattr(loss, "scope", "step")
    if scope not in ("group", "step"):
        raise ValueError(f"the scope of a custom loss is 'group' or 'step', not {scope!r}")
    return Declared(loss, scope, tuple(getattr(loss, "reads", ())), getattr(loss, "name", "custom"))


def named_loss(loss: Loss) -> Declared:
    """A loss of `engine.training.losses`, for backends that do not have it themselves. Raises ValueError for a name that is not there."""

    def custom(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
        return CustomLossResult(*evaluate(loss, data, logprobs))

    formula = find_formula(loss)
    return Declared(custom, "step" if formula.whole_pass else "group", formula.reads, loss.name)


def function_loss(
    function: LossFunction, reads: Sequence[str] = POLICY_FIELDS, *, scope: Scope = "step", **params: float
) -> Declared:
    """A loss from a function of `LossTokens` that returns the loss of each token and the gradient; `reads` names the arrays it needs.

    `scope="group"` promises that no datum's loss depends on another datum.
    """

    def custom(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
        loss_N, gradient_N = function(loss_tokens(data, logprobs, reads), **params)
        return CustomLossResult(float(loss_N.sum()), split_by_datum(gradient_N, logprobs))

    return Declared(custom, scope, tuple(reads), getattr(function, "__name__", "custom"))


def evaluated(loss: CustomLoss, data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
    """The loss's value and gradient, checked.

    Raises ValueError, naming the datum, where the policy's own logprobs, a gradient or the value is not finite, or a gradient has another length.
    """
    for index, logprobs_T in enumerate(logprobs):
        if not np.isfinite(logprobs_T).all():
            at = int(np.flatnonzero(~np.isfinite(logprobs_T))[0])
            raise ValueError(
                f"datum {index}: the policy's logprob of the target at position {at} is {logprobs_T[at]}, before any loss: training has diverged"
            )
    result = loss(data, logprobs)
    linearized(data, result.gradients)  # its complaints name the datum
    if not math.isfinite(result.loss):
        raise ValueError(f"the custom loss is {result.loss}{_culprit(loss, data, logprobs)}")
    return result


def _culprit(loss: CustomLoss, data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> str:
    """Which datum alone makes the loss infinite or NaN, as the end of a sentence."""
    for index, (datum, logprobs_T) in enumerate(zip(data, logprobs, strict=True)):
        try:
            alone = loss([datum], [logprobs_T]).loss
        except Exception:  # noqa: BLE001  (it compares datums, so it cannot be asked for one)
            break
        if not math.isfinite(alone):
            return f": that of datum {index} alone is {alone}"
    return f" over {len(data)} datums together, and not of a single one"


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
