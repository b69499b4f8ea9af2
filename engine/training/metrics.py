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
    # A correction puts the proximal policy's logprobs in the sampler's place, and keeps those.
    sampler = np.concatenate([each.get("sampler_logprobs", each["logprobs"]) for each in inputs])
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
    sums = StepSums(clip_low=clip_low, clip_high=clip_high)
    sums.add(data, logprobs)
    return sums.metrics()


class StepSums:
    """`step_metrics` of a step that comes in parts, so that a big one need not be gathered in one go."""

    def __init__(self, *, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        self._clip_low, self._clip_high = clip_low, clip_high
        self._tokens = self._clipped = 0
        self._sums = np.zeros(4)
        """Sums over tokens of l, l²/2, e^(−l) − 1 + l, −log μ."""
        self._largest = -np.inf
        self._weights = self._squares = 0.0
        """Σw and Σw², both relative to the largest w: no overflow, and their ratio needs no more."""

    def add(self, data: Sequence[Datum], logprobs: Sequence[Logprobs]) -> None:
        """Counts more of the step. Raises ValueError where the logprobs do not fit the datums."""
        tokens = trained_tokens(data, logprobs)
        if not len(tokens.logprobs):
            return
        difference_N, advantages_N = tokens.sampler_logprobs - tokens.logprobs, tokens.advantages
        with np.errstate(over="ignore"):  # a token that the trainer finds e^709 times likelier has an infinite weight
            excess_N = np.expm1(-difference_N)
        low_N, high_N = excess_N < -self._clip_low, excess_N > self._clip_high
        self._tokens += len(difference_N)
        self._clipped += int(np.count_nonzero(((advantages_N > 0) & high_N) | ((advantages_N < 0) & low_N)))
        k1, entropy = difference_N.sum(), -tokens.sampler_logprobs.sum()
        self._sums += k1, np.dot(difference_N, difference_N) / 2, excess_N.sum() + k1, entropy
        largest = max(self._largest, -float(difference_N.min()))
        shrink = np.exp(self._largest - largest)
        scaled_N = np.exp(-difference_N - largest)
        self._weights = self._weights * shrink + float(scaled_N.sum())
        self._squares = self._squares * shrink**2 + float(np.dot(scaled_N, scaled_N))
        self._largest = largest

    def metrics(self) -> dict[str, float]:
        """What `step_metrics` gives, for all that was added."""
        if not self._tokens:
            return {}
        k1, k2, k3, entropy = (float(value) for value in self._sums / self._tokens)
        return {
            "optim/kl_sample_train_v1": k1,
            "optim/kl_sample_train_v2": k2,
            "optim/kl_sample_train_v3": k3,
            "optim/effective_sample_size": self._weights**2 / (self._tokens * self._squares),
            "optim/clip_fraction": self._clipped / self._tokens,
            "optim/entropy": entropy,
        }
