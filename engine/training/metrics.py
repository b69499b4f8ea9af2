"""What a training step says about itself: how far the policy that trains is from the one that sampled.

Names are tinker-cookbook's where the same thing is meant (`optim/kl_sample_train_v1`, `_v2`, `optim/entropy`). All are means over the tokens with mask 1
of all datums together, so a long answer counts for what it is.

Dimension suffixes: `T` positions of one datum, `N` trained tokens of all datums.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, Logprobs


@attrs.frozen
class TrainedTokens:
    """The trained tokens of many datums side by side, each array of shape (N,), float64."""

    sampler_logprobs: NDArray[np.float64]
    logprobs: NDArray[np.float64]
    advantages: NDArray[np.float64]


def trained_tokens(data: Sequence[Datum], logprobs: Sequence[Logprobs]) -> TrainedTokens:
    """Gathers what was trained: tokens with mask 1, or, in datums without a mask, with an advantage or a sampler logprob that is not zero.

    `logprobs` are the new policy's, one array for each datum, as a forward pass returns them. Raises ValueError where they do not fit.
    """
    if len(data) != len(logprobs):
        raise ValueError(f"there are {len(data)} datums but logprobs for {len(logprobs)}")
    if not data:
        empty = np.empty(0)
        return TrainedTokens(empty, empty, empty)
    inputs = [datum.loss_inputs for datum in data]
    sampler = np.concatenate([each["logprobs"] for each in inputs])
    advantages = np.concatenate([each["advantages"] for each in inputs])
    new = np.concatenate(logprobs)
    if len(new) != len(sampler):
        at = next(
            i for i, (each, lp) in enumerate(zip(inputs, logprobs, strict=True)) if len(each["logprobs"]) != len(lp)
        )
        raise ValueError(f"datum {at} has {len(inputs[at]['logprobs'])} positions but {len(logprobs[at])} new logprobs")
    if all("mask" in each for each in inputs):
        trained = np.concatenate([each["mask"] for each in inputs]) > 0
    else:
        trained = (advantages != 0) | (sampler != 0)
    return TrainedTokens(*(array[trained].astype(np.float64) for array in (sampler, new, advantages)))


def step_metrics(
    data: Sequence[Datum], logprobs: Sequence[Logprobs], *, clip_low: float = 0.2, clip_high: float = 0.2
) -> dict[str, float]:
    """Mismatch, effective sample size, clip fraction and entropy of a step; nothing when no token was trained.

    With l = log μ − log π (sampler less trainer) over tokens that μ sampled, so that each estimates KL(μ ‖ π):

    - `optim/kl_sample_train_v1`: mean l, `_v2`: mean l²/2, `_v3`: mean e^(−l) − 1 + l (k1, k2, k3; joschu.net/blog/kl-approx.html)
    - `optim/effective_sample_size`: (Σw)² / (N Σw²), w = π/μ: 1 on-policy, towards 1/N as a few tokens carry all the weight
    - `optim/clip_fraction`: share of tokens where a PPO clip at 1 − `clip_low`, 1 + `clip_high` cuts the gradient off
    - `optim/entropy`: −mean log μ, the sampler's entropy by its own samples
    """
    return mismatch_metrics(trained_tokens(data, logprobs), clip_low=clip_low, clip_high=clip_high)


def mismatch_metrics(tokens: TrainedTokens, *, clip_low: float = 0.2, clip_high: float = 0.2) -> dict[str, float]:
    """`step_metrics` of tokens that have been gathered already."""
    if not len(tokens.logprobs):
        return {}
    difference_N = tokens.sampler_logprobs - tokens.logprobs
    with np.errstate(over="ignore"):  # a token that the trainer finds e^709 times likelier has an infinite weight
        weights_N = np.exp(-difference_N)
    # The ratio of the sums keeps its value when all weights are scaled: no overflow for the largest of them.
    scaled_N = np.exp(difference_N.min() - difference_N)
    advantages_N = tokens.advantages
    clipped_N = ((advantages_N > 0) & (weights_N > 1 + clip_high)) | ((advantages_N < 0) & (weights_N < 1 - clip_low))
    return {
        "optim/kl_sample_train_v1": float(difference_N.mean()),
        "optim/kl_sample_train_v2": float(0.5 * np.mean(difference_N**2)),
        "optim/kl_sample_train_v3": float(np.mean(weights_N - 1 + difference_N)),
        "optim/effective_sample_size": float(scaled_N.sum() ** 2 / (len(scaled_N) * np.sum(scaled_N**2))),
        "optim/clip_fraction": float(clipped_N.mean()),
        "optim/entropy": float(-tokens.sampler_logprobs.mean()),
    }
