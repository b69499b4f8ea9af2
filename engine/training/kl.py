"""KL divergence to a reference policy: estimators, the penalty in the reward, and what a loss on them differentiates to.

With l = log π − log π_ref of a token that π sampled:

    k1 = l               unbiased, often negative
    k2 = l²/2            biased, its gradient is the KL's
    k3 = e^(−l) − 1 + l  unbiased, never negative, its gradient is not the KL's
    k3+                  k3's value with k2's gradient (straight through)

k1 and k3 are for measuring and for rewards; a *loss* needs k2 or k3+. (J. Schulman, "Approximating KL divergence", 2020; on gradients: arXiv 2506.09477.)

Dimension suffixes: `N` trained tokens of all datums, `T` positions of one datum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, ModelInput
from engine.training.advantages import discounted_sums

Array = NDArray[np.float64]
KLKind = Literal["k1", "k2", "k3", "k3+"]
KL_KINDS: tuple[KLKind, ...] = get_args(KLKind)


def kl_value_and_gradient(log_ratio: Array, kind: KLKind) -> tuple[Array, Array]:
    """The estimate of KL(π ‖ π_ref) at each token, and its derivative with respect to log π, each of `log_ratio`'s shape."""
    if kind == "k1":
        return log_ratio, np.ones_like(log_ratio)
    if kind == "k2":
        return log_ratio**2 / 2, log_ratio
    if kind not in KL_KINDS:
        raise ValueError(f"no KL estimator is called {kind!r}; there are {', '.join(KL_KINDS)}")
    shrink = np.expm1(-log_ratio)
    return shrink + log_ratio, log_ratio if kind == "k3+" else -shrink


def kl_penalized(
    data: Sequence[Datum],
    reference_logprobs: Sequence[NDArray[Any]],
    coef: float,
    *,
    kind: KLKind = "k1",
    discount: float = 0.0,
    centre: bool = True,
    metric: str = "kl_policy_base",
) -> tuple[list[Datum], dict[str, float]]:
    """Adds −coef·KL to the advantages of a whole step's datums.

    Args:
        data: all datums of the optimizer step, with `logprobs` of the sampler, `advantages` and `mask`. Cut into minibatches afterwards: the mean that
            centring takes off is the step's, however the step is then split.
        reference_logprobs: of the target tokens, one array (T,) for each datum; what a backend computes for `full_sequence(datum)`, without position 0.
        coef: how much a nat costs.
        kind: the estimator, on l = log μ − log π_ref. In a reward "k3+" is k3: a reward is not differentiated.
        discount: γ of the penalty's future, in sampled tokens: a token also answers for those after it in its datum, γ^k for the k-th. 0: for itself alone.
        centre: takes the step's mean penalty off, so that a common drift moves nothing. For distillation, where the KL is all there is, False.
        metric: name of the mean KL in the metrics.

    Returns:
        New datums and `{metric: mean over trained tokens}`.

    Raises:
        ValueError: naming the datum: logprobs that do not fit, or that are not finite at a trained token.
    """
    _check_reference(data, reference_logprobs)
    if not data:
        return [], {}
    trained = np.concatenate([datum.loss_inputs["mask"] for datum in data]) > 0
    lengths = [len(each) for each in reference_logprobs]
    datum_N = np.repeat(np.arange(len(data)), lengths)[trained]
    sampler_N = np.concatenate([datum.loss_inputs["logprobs"] for datum in data])[trained].astype(np.float64)
    reference_N = np.concatenate(reference_logprobs)[trained].astype(np.float64)
    if not np.isfinite(reference_N).all():
        at = int(np.flatnonzero(~np.isfinite(reference_N))[0])
        raise ValueError(f"datum {datum_N[at]}: the reference logprob of a trained token is {reference_N[at]}")
    if not len(reference_N):
        return list(data), {}
    kl_N, _ = kl_value_and_gradient(sampler_N - reference_N, kind)
    mean = float(kl_N.mean())
    penalty_N = -coef * (kl_N - mean if centre else kl_N)
    if discount:
        same_datum_next = np.append(datum_N[1:] == datum_N[:-1], False)
        penalty_N = discounted_sums(penalty_N, discount * same_datum_next)
    penalty = np.zeros(len(trained), np.float32)
    penalty[trained] = penalty_N
    penalized = [
        attrs.evolve(
            datum, loss_inputs={**datum.loss_inputs, "advantages": datum.loss_inputs["advantages"] + penalty_T}
        )
        for datum, penalty_T in zip(data, np.split(penalty, np.cumsum(lengths)[:-1]), strict=True)
    ]
    return penalized, {metric: mean}


def full_sequence(datum: Datum) -> ModelInput:
    """The datum's input with its last target behind it: what a reference has to score. Its logprobs from position 1 on are those of the targets."""
    return datum.model_input.append(datum.loss_inputs["target_tokens"][-1:])


def _check_reference(data: Sequence[Datum], reference_logprobs: Sequence[NDArray[Any]]) -> None:
    if len(data) != len(reference_logprobs):
        raise ValueError(f"there are {len(data)} datums but reference logprobs for {len(reference_logprobs)}")
    for index, (datum, reference_T) in enumerate(zip(data, reference_logprobs, strict=True)):
        positions = datum.model_input.length
        if len(reference_T) != positions:
            hint = (
                "; position 0 of a full sequence has no logprob: leave it out"
                if len(reference_T) == positions + 1
                else ""
            )
            raise ValueError(f"datum {index} has {positions} positions but {len(reference_T)} reference logprobs{hint}")
