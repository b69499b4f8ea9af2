"""Off-policy corrections: weights for the gap between the policy that sampled (μ) and a proximal policy (π_p), with any loss.

A weight depends on ρ = π_p/μ, which is known before the loss is computed, and every loss here but `dro` is proportional to the advantage. So a correction
is a change of the data: advantages times weights, and π_p in μ's place in `logprobs`, around which the loss then clips. It works on every
backend and combines with every loss; `decoupled_ppo` is ppo on data corrected with `truncated`.

π_p is the trainer's own policy at the start of the step: its logprobs of the same tokens, from one forward pass. With π_p equal to μ in exact
arithmetic, what is corrected is the mismatch between sampler and trainer; otherwise staleness too.

Dimension suffixes: `N` trained tokens of all datums, `T` positions of one datum.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum
from engine.training.advantages import Scope

Array = NDArray[np.float64]


@attrs.frozen(eq=False)
class LogRatios:
    """log ρ of the trained tokens, and which datum each is of."""

    values: Array
    """log π_p − log μ, shape (N,)."""
    sequence: NDArray[np.int64]
    """Shape (N,): 0, 0, ..., 1, ..."""

    def sums(self) -> Array:
        """log of a sequence's ratio: the sum over its tokens, repeated for each, shape (N,)."""
        if not len(self.values):
            return self.values
        sums_S: Array = np.bincount(self.sequence, weights=self.values).astype(np.float64)
        return sums_S[self.sequence]

    def means(self) -> Array:
        """log of the geometric mean of a sequence's ratios, repeated for each of its tokens, shape (N,)."""
        return (
            self.sums() / np.maximum(np.bincount(self.sequence), 1)[self.sequence] if len(self.values) else self.values
        )


Correction = Callable[[LogRatios], Array]
"""Weights ≥ 0 of the tokens, shape (N,). One of your own may have an attribute `scope`; see `correction_scope`."""


@attrs.frozen(eq=False)
class SequenceWise:
    """A correction whose weights depend on the token's own sequence alone, so that a sequence can be corrected as soon as it is there."""

    function: Correction
    scope: Scope = "group"

    def __call__(self, ratios: LogRatios) -> Array:
        """Weights, shape (N,)."""
        return self.function(ratios)


def truncated(cap: float = 2.0) -> Correction:
    """min(ρ, cap) per token: truncated importance sampling, TIS. arXiv 2510.18855."""
    return SequenceWise(lambda ratios: np.exp(_clipped(ratios.values, cap)))


def masked(low: float = 0.5, high: float = 5.0) -> Correction:
    """ρ where low ≤ ρ ≤ high, else 0, per token: masked importance sampling, MIS or IcePop. arXiv 2510.18855."""
    return SequenceWise(lambda ratios: _inside(ratios.values, low, high) * np.exp(_clipped(ratios.values, high)))


def sequence_truncated(cap: float = 2.0) -> Correction:
    """min(Π ρ, cap) for all tokens of a sequence."""
    return SequenceWise(lambda ratios: np.exp(_clipped(ratios.sums(), cap)))


def sequence_masked(low: float = 0.5, high: float = 2.0) -> Correction:
    """Π ρ for all tokens of a sequence where low ≤ Π ρ ≤ high, else 0."""
    return SequenceWise(lambda ratios: _inside(ratios.sums(), low, high) * np.exp(_clipped(ratios.sums(), high)))


def sequence_rejected(low: float = 0.5, high: float = 2.0) -> Correction:
    """1 for sequences with low ≤ Π ρ ≤ high, else 0."""
    return SequenceWise(lambda ratios: _inside(ratios.sums(), low, high))


def geometric_rejected(low: float = 0.99, high: float = 1.001) -> Correction:
    """1 for sequences whose ratios have a geometric mean in [low, high], else 0: a bound that does not tighten with length. arXiv 2512.23075."""
    return SequenceWise(lambda ratios: _inside(ratios.means(), low, high))


def combined(*corrections: Correction) -> Correction:
    """The product of several: say, sequences rejected by geometric mean, and the rest truncated token by token."""

    def weights(ratios: LogRatios) -> Array:
        product_N = np.ones(len(ratios.values))
        for correction in corrections:
            product_N = product_N * correction(ratios)
        return product_N

    if all(correction_scope(correction) == "group" for correction in corrections):
        return SequenceWise(weights)
    return weights


def correction_scope(correction: Correction) -> Scope:
    """How much of a step a correction has to see at once: its attribute `scope`; without one, the whole step, which is always right and only costs waiting."""
    scope: Scope = getattr(correction, "scope", "step")
    return scope


def _inside(log_N: Array, low: float, high: float) -> Array:
    return np.where((log_N >= np.log(low)) & (log_N <= np.log(high)), 1.0, 0.0)


def _clipped(log_N: Array, cap: float) -> Array:
    """Bounded before the exponential, so that a product over a long sequence does not overflow."""
    return np.minimum(log_N, np.log(cap))


CORRECTIONS: Mapping[str, Callable[..., Correction]] = {
    "tis": truncated,
    "mis": masked,
    "sequence_tis": sequence_truncated,
    "sequence_mis": sequence_masked,
    "sequence_rejection": sequence_rejected,
    "geometric_rejection": geometric_rejected,
}
"""Corrections by the name a configuration gives; call one with its parameters."""


def resolve_correction(choice: str | Correction) -> Correction:
    """The correction of a text, or a callable of one's own.

    The text names one, with parameters where the defaults do not suit, or several that are multiplied: `tis`, `mis:low=0.4,high=6`,
    `geometric_rejection:low=0.9,high=1.1+tis:cap=3`. Raises ValueError saying what there is for an unknown name or parameter.
    """
    if not isinstance(choice, str):
        return choice
    corrections = [_named(part.strip()) for part in choice.split("+")]
    return corrections[0] if len(corrections) == 1 else combined(*corrections)


def _named(text: str) -> Correction:
    name, _, given = text.partition(":")
    if name not in CORRECTIONS:
        raise ValueError(f"no correction is called {name!r}; there are {', '.join(CORRECTIONS)}")
    params = {}
    for part in filter(None, given.split(",")):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\S+)\s*", part)
        known = inspect.signature(CORRECTIONS[name]).parameters
        if match is None or match[1] not in known:
            raise ValueError(f"correction {name!r}: {part!r} is none of its parameters, which are {', '.join(known)}")
        try:
            params[match[1]] = float(match[2])
        except ValueError:
            raise ValueError(f"correction {name!r}: {match[1]} must be a number, not {match[2]!r}") from None
    return CORRECTIONS[name](**params)


def correct(
    data: Sequence[Datum], proximal_logprobs: Sequence[NDArray[Any]], correction: Correction
) -> tuple[list[Datum], dict[str, float]]:
    """Corrected datums, and metrics of the weights.

    Args:
        data: with `logprobs` of the sampler, `advantages` and `mask`.
        proximal_logprobs: log π_p of the target tokens, one array (T,) for each datum, as a forward pass returns them.
        correction: from `CORRECTIONS`, or any function from `LogRatios` to weights.

    Returns:
        New datums with π_p's logprobs in `logprobs` and the sampler's, which the step's metrics are about, in `sampler_logprobs`; and `optim/correction_weight_mean`, `optim/correction_rejected` (share of trained tokens with weight 0). The masks stay: what was
        rejected still shows in the metrics of the step.

    Raises:
        ValueError: where the logprobs do not fit the datums, or a weight is negative or not finite.
    """
    if len(data) != len(proximal_logprobs):
        raise ValueError(f"there are {len(data)} datums but proximal logprobs for {len(proximal_logprobs)}")
    if not data:
        return [], {}
    for index, (datum, proximal_T) in enumerate(zip(data, proximal_logprobs, strict=True)):
        if len(proximal_T) != len(datum.loss_inputs["logprobs"]):
            raise ValueError(
                f"datum {index} has {len(datum.loss_inputs['logprobs'])} positions but {len(proximal_T)} proximal logprobs"
            )
    lengths = [len(each) for each in proximal_logprobs]
    trained = np.concatenate([datum.loss_inputs["mask"] for datum in data]) > 0
    sampler = np.concatenate([datum.loss_inputs["logprobs"] for datum in data])
    proximal = np.where(trained, np.concatenate(proximal_logprobs), 0.0)
    log_ratios_N = proximal[trained].astype(np.float64) - sampler[trained]
    weights_N = correction(LogRatios(log_ratios_N, np.repeat(np.arange(len(data)), lengths)[trained]))
    if weights_N.shape != log_ratios_N.shape or not np.all(np.isfinite(weights_N) & (weights_N >= 0)):
        raise ValueError(
            f"a correction must give one finite weight of at least 0 for each of {len(log_ratios_N)} tokens, not {weights_N}"
        )
    weights = np.zeros(len(trained), np.float32)
    weights[trained] = weights_N
    cuts = np.cumsum(lengths)[:-1]
    corrected = [
        Datum(
            datum.model_input,
            {
                **datum.loss_inputs,
                "logprobs": old_T,
                "advantages": datum.loss_inputs["advantages"] * weights_T,
                "sampler_logprobs": datum.loss_inputs["logprobs"],
            },
        )
        for datum, old_T, weights_T in zip(
            data, np.split(proximal.astype(np.float32), cuts), np.split(weights, cuts), strict=True
        )
    ]
    if not len(weights_N):
        return corrected, {}
    return corrected, {
        "optim/correction_weight_mean": float(weights_N.mean()),
        "optim/correction_rejected": float(np.mean(weights_N == 0)),
    }
