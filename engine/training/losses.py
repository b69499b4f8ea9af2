"""Losses in closed form: value and gradient with respect to the log-probabilities, in numpy.

These are the definitions. A backend has its own versions where its gradients are, tested against these; and any of them, or a function of your
own, runs on a backend that has only cross-entropy, through `engine.training.custom`.

    μ   the policy that sampled: `logprobs` of the datum         A   `advantages`, zero outside actions
    π   the policy in training                                   w   π/μ, per token
    sg  stop-gradient: a factor that is not differentiated       s   a mean or product over the trained tokens of one sequence (one datum)

Every loss is minimised and is a sum over tokens; scale the advantages to have a mean (`engine.training.normalization`). Where a separate proximal
policy π_p is known, `engine.training.corrections` puts it in μ's place, and w becomes r = π/π_p.

Dimension suffixes: `N` tokens of all datums laid end to end, `S` sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, Loss
from engine.training.kl import KL_KINDS, KLKind, kl_value_and_gradient

Array = NDArray[np.float64]


@attrs.frozen(eq=False)
class LossTokens:
    """What a loss is computed from: the tokens of many datums side by side."""

    logprobs: Array
    """log π of the target tokens, shape (N,)."""
    inputs: Mapping[str, Array]
    """The datums' arrays, each (N,)."""
    sequence: NDArray[np.int64]
    """Which datum a token is of, shape (N,): 0, 0, ..., 1, ..."""

    @property
    def log_ratio(self) -> Array:
        """log w, shape (N,)."""
        return self.logprobs - self.inputs["logprobs"]

    @property
    def ratio(self) -> Array:
        """w, shape (N,)."""
        return np.exp(self.log_ratio)

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Tokens with mask 1, shape (N,)."""
        return self.inputs["mask"] > 0

    def sequence_sums(self, values_N: Array) -> Array:
        """Σ over the trained tokens of a sequence, repeated for each of its tokens, shape (N,)."""
        sums_S: Array = np.bincount(self.sequence, weights=values_N * self.trained).astype(np.float64)
        return sums_S[self.sequence]

    @property
    def sequence_lengths(self) -> Array:
        """Trained tokens of a token's sequence, at least 1, shape (N,)."""
        return np.maximum(self.sequence_sums(np.ones(len(self.sequence))), 1.0)

    def sequence_means(self, values_N: Array) -> Array:
        """Mean over the trained tokens of a sequence, repeated for each of its tokens, shape (N,)."""
        return self.sequence_sums(values_N) / self.sequence_lengths


LossAndGradient = tuple[Array, Array]
"""Loss of each token, shape (N,), and the gradient of their sum with respect to `logprobs`, shape (N,)."""
LossFunction = Callable[..., LossAndGradient]
"""Called with `LossTokens` and its parameters as keywords."""


# ---- token by token ------------------------------------------------------------------------------------------------------------------


def cross_entropy(tokens: LossTokens) -> LossAndGradient:
    """−weight·log π."""
    weights_N = tokens.inputs["weights"]
    return -weights_N * tokens.logprobs, -weights_N


def importance_sampling(tokens: LossTokens) -> LossAndGradient:
    """−w·A. Unbiased at any staleness, with a variance that nothing bounds."""
    loss_N = -tokens.ratio * tokens.inputs["advantages"]
    return loss_N, loss_N


def ppo(tokens: LossTokens, clip_low_threshold: float = 0.8, clip_high_threshold: float = 1.2) -> LossAndGradient:
    """−min(w·A, clip(w)·A), the thresholds being bounds on w itself. arXiv 1707.06347."""
    ratio_N, advantages_N = tokens.ratio, tokens.inputs["advantages"]
    free_N, clipped_N = ratio_N * advantages_N, np.clip(ratio_N, clip_low_threshold, clip_high_threshold) * advantages_N
    return -np.minimum(free_N, clipped_N), np.where(free_N <= clipped_N, -free_N, 0.0)


def dapo(tokens: LossTokens, clip_low_threshold: float = 0.8, clip_high_threshold: float = 1.28) -> LossAndGradient:
    """ppo with more room upwards, so that rare tokens can rise ("clip-higher"). arXiv 2503.14476."""
    return ppo(tokens, clip_low_threshold, clip_high_threshold)


def dual_clip_ppo(
    tokens: LossTokens, clip_low_threshold: float = 0.8, clip_high_threshold: float = 1.2, dual_clip: float = 3.0
) -> LossAndGradient:
    """ppo whose gain is at least c·A where A < 0: no token can push without bound. arXiv 1912.09729."""
    loss_N, gradient_N = ppo(tokens, clip_low_threshold, clip_high_threshold)
    floor_N = np.where(tokens.inputs["advantages"] < 0, dual_clip * -tokens.inputs["advantages"], np.inf)
    return np.minimum(loss_N, floor_N), np.where(loss_N <= floor_N, gradient_N, 0.0)


def decoupled_ppo(
    tokens: LossTokens, clip_low_threshold: float = 0.8, clip_high_threshold: float = 1.2, cap: float = 2.0
) -> LossAndGradient:
    """−ρ·min(r·A, clip(r)·A), ρ = min(π_p/μ, cap): the trust region lies around a recent policy π_p, not around the one that sampled.

    Reads `proximal_logprobs` too. arXiv 2110.00641, 2505.24298.
    """
    proximal_N = tokens.inputs["proximal_logprobs"]
    weights_N = np.minimum(np.exp(proximal_N - tokens.inputs["logprobs"]), cap)
    around_proximal = attrs.evolve(tokens, inputs={**tokens.inputs, "logprobs": proximal_N})
    loss_N, gradient_N = ppo(around_proximal, clip_low_threshold, clip_high_threshold)
    return weights_N * loss_N, weights_N * gradient_N


def _weighted_log_likelihood(tokens: LossTokens, weights_N: Array) -> LossAndGradient:
    """−sg(weight)·A·log π."""
    gradient_N = -weights_N * tokens.inputs["advantages"]
    return gradient_N * tokens.logprobs, gradient_N


def cispo(tokens: LossTokens, clip_low_threshold: float = 0.0, clip_high_threshold: float = 4.0) -> LossAndGradient:
    """−sg(clip(w))·A·log π: a clipped token keeps a bounded gradient, where ppo's has none. arXiv 2506.13585."""
    return _weighted_log_likelihood(tokens, np.clip(tokens.ratio, clip_low_threshold, clip_high_threshold))


def aipo(tokens: LossTokens, cap: float = 4.0) -> LossAndGradient:
    """−sg(min(w, cap))·A·log π. arXiv 2505.24034."""
    return _weighted_log_likelihood(tokens, np.minimum(tokens.ratio, cap))


def sapo(tokens: LossTokens, tau_positive: float = 1.0, tau_negative: float = 1.05) -> LossAndGradient:
    """−(4/τ)·σ(τ(w − 1))·A, τ by the sign of A: the gradient fades with distance where ppo's stops. arXiv 2511.20347."""
    ratio_N, advantages_N = tokens.ratio, tokens.inputs["advantages"]
    tau_N = np.where(advantages_N > 0, tau_positive, tau_negative)
    gate_N = _sigmoid(tau_N * (ratio_N - 1))
    return -4 / tau_N * gate_N * advantages_N, -4 * gate_N * (1 - gate_N) * ratio_N * advantages_N


def dppo_tv(tokens: LossTokens, threshold: float = 0.15) -> LossAndGradient:
    """−w·A, and nothing where the token's probability has already moved A's way by more than `threshold`. arXiv 2602.04879."""
    advantages_N = tokens.inputs["advantages"]
    moved_N = np.exp(tokens.logprobs) - np.exp(tokens.inputs["logprobs"])
    kept_N = ~(((advantages_N > 0) & (moved_N > threshold)) | ((advantages_N < 0) & (moved_N < -threshold)))
    loss_N = -tokens.ratio * advantages_N * kept_N
    return loss_N, loss_N


def dro(tokens: LossTokens, beta: float = 0.05) -> LossAndGradient:
    """−(A·log π − β/2·(log w)²) on the trained tokens: a quadratic pull towards μ in place of a ratio. arXiv 2405.19107."""
    advantages_N, log_ratio_N = tokens.inputs["advantages"], tokens.log_ratio
    loss_N = -(advantages_N * tokens.logprobs - beta / 2 * log_ratio_N**2)
    return loss_N * tokens.trained, -(advantages_N - beta * log_ratio_N) * tokens.trained


# ---- sequence by sequence, and over the whole pass -----------------------------------------------------------------------------------


def gspo(
    tokens: LossTokens, clip_low_threshold: float = 1 - 3e-4, clip_high_threshold: float = 1 + 4e-4
) -> LossAndGradient:
    """ppo on s = exp(mean log w) of each sequence, which counts once whatever its length: each of its tokens carries 1/length of it.

    arXiv 2507.18071.
    """
    share_N = 1 / tokens.sequence_lengths
    s_N, advantages_N = np.exp(tokens.sequence_means(tokens.log_ratio)), tokens.inputs["advantages"]
    free_N, clipped_N = s_N * advantages_N, np.clip(s_N, clip_low_threshold, clip_high_threshold) * advantages_N
    active_N = np.where(free_N <= clipped_N, advantages_N, 0.0)
    gradient_N = -s_N * tokens.sequence_means(active_N) * share_N
    return -np.minimum(free_N, clipped_N) * share_N * tokens.trained, gradient_N * tokens.trained


def topr(tokens: LossTokens) -> LossAndGradient:
    """−sg(weight)·A·log π, weight 1 for A > 0 and clip(w, 0, 1) of the whole sequence for A < 0. arXiv 2503.14286."""
    tapered_N = np.exp(np.minimum(tokens.sequence_sums(tokens.log_ratio), 0.0))
    return _weighted_log_likelihood(tokens, np.where(tokens.inputs["advantages"] > 0, 1.0, tapered_N))


def opsm(
    tokens: LossTokens, delta: float = 0.1, clip_low_threshold: float = 0.8, clip_high_threshold: float = 1.2
) -> LossAndGradient:
    """ppo without the tokens of A < 0 in sequences that have drifted: mean(log μ − log π) > δ. arXiv 2512.02556."""
    loss_N, gradient_N = ppo(tokens, clip_low_threshold, clip_high_threshold)
    kept_N = ~((tokens.inputs["advantages"] < 0) & (tokens.sequence_means(-tokens.log_ratio) > delta))
    return loss_N * kept_N, gradient_N * kept_N


def m2po(tokens: LossTokens, tau: float = 0.04) -> LossAndGradient:
    """−w·A on the most tokens, nearest to μ first, that keep the pass's mean (log w)² at most τ. arXiv 2510.01161."""
    kept_N = second_moment_mask(tokens.log_ratio, tokens.trained, tau)
    loss_N = -tokens.ratio * tokens.inputs["advantages"] * kept_N
    return loss_N, loss_N


def second_moment_mask(log_ratio_N: Array, trained_N: NDArray[np.bool_], tau: float) -> NDArray[np.bool_]:
    """The largest set of trained tokens, smallest |log w| first, whose mean (log w)² is at most `tau`, shape (N,)."""
    indices = np.flatnonzero(trained_N)
    squares = log_ratio_N[indices] ** 2
    order = np.argsort(squares, kind="stable")
    # Means of a sorted prefix only grow, so the last one that fits ends the largest set.
    means = np.cumsum(squares[order]) / np.arange(1, len(order) + 1)
    mask_N = np.zeros(len(log_ratio_N), bool)
    mask_N[indices[order[: np.searchsorted(means, tau, side="right")]]] = True
    return mask_N


def dpo(tokens: LossTokens, beta: float = 0.1) -> LossAndGradient:
    """−log σ(β[(log π_c − log ref_c) − (log π_r − log ref_r)]) of each pair; the value stands at the chosen sequence's first token.

    Datums come in pairs, chosen then rejected, with `weights` (1 on the answers) and `reference_logprobs`. arXiv 2305.18290.
    """
    weights_N = tokens.inputs["weights"]
    log_ratio_N = weights_N * (tokens.logprobs - tokens.inputs["reference_logprobs"])
    sums_S: Array = np.bincount(tokens.sequence, weights=log_ratio_N).astype(np.float64)
    if len(sums_S) % 2:
        raise ValueError(f"dpo takes datums in pairs, chosen then rejected, but there are {len(sums_S)}")
    margins: Array = beta * (sums_S[0::2] - sums_S[1::2])
    loss_N = np.zeros(len(weights_N))
    loss_N[np.searchsorted(tokens.sequence, np.arange(0, len(sums_S), 2))] = np.logaddexp(0.0, -margins)
    slope_S = np.repeat(beta * _sigmoid(-margins), 2) * np.tile([-1.0, 1.0], len(margins))
    return loss_N, slope_S[tokens.sequence] * weights_N


def kl_loss(kind: KLKind) -> LossFunction:
    """coef·sg(w)·KL(π ‖ reference) of the trained tokens, by one of the estimators; a second pass adds it to any policy loss.

    Reads `reference_logprobs`. Only k2's gradient is the KL's ("k3+" has it too, with k3's value); see `engine.training.kl`.
    """

    def kl(tokens: LossTokens, coef: float = 1.0) -> LossAndGradient:
        value_N, gradient_N = kl_value_and_gradient(tokens.logprobs - tokens.inputs["reference_logprobs"], kind)
        weights_N = coef * tokens.ratio * tokens.trained
        return weights_N * value_N, weights_N * gradient_N

    return kl


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


# ---- by name -------------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class LossFormula:
    """A loss with what it reads of a datum beside `target_tokens`, and its parameters with their defaults."""

    function: LossFunction
    reads: tuple[str, ...]
    whole_pass: bool = False
    """The loss of a datum depends on all others of the pass, so that splitting it changes the gradient. (That of a pair of `dpo` does not.)"""

    @property
    def params(self) -> dict[str, float]:
        """Parameters and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


_POLICY = ("logprobs", "advantages")
POLICY_FIELDS = (*_POLICY, "mask")
"""What assembly puts into a datum beside `target_tokens`."""

LOSSES: Mapping[str, LossFormula] = {
    "cross_entropy": LossFormula(cross_entropy, ("weights",)),
    "importance_sampling": LossFormula(importance_sampling, _POLICY),
    "ppo": LossFormula(ppo, _POLICY),
    "dapo": LossFormula(dapo, _POLICY),
    "dual_clip_ppo": LossFormula(dual_clip_ppo, _POLICY),
    "decoupled_ppo": LossFormula(decoupled_ppo, (*_POLICY, "proximal_logprobs")),
    "cispo": LossFormula(cispo, _POLICY),
    "aipo": LossFormula(aipo, _POLICY),
    "sapo": LossFormula(sapo, _POLICY),
    "dppo_tv": LossFormula(dppo_tv, _POLICY),
    "dro": LossFormula(dro, POLICY_FIELDS),
    "gspo": LossFormula(gspo, POLICY_FIELDS),
    "topr": LossFormula(topr, POLICY_FIELDS),
    "opsm": LossFormula(opsm, POLICY_FIELDS),
    "m2po": LossFormula(m2po, POLICY_FIELDS, whole_pass=True),
    "dpo": LossFormula(dpo, ("weights", "reference_logprobs")),
    **{f"kl_{kind}": LossFormula(kl_loss(kind), ("logprobs", "mask", "reference_logprobs")) for kind in KL_KINDS},
}
"""Losses by the name a configuration gives."""


def default_loss(max_staleness: int) -> Loss:
    """importance_sampling on-policy; ppo as soon as data may be stale, because an unbounded ratio then lets the policies drift apart."""
    return Loss("ppo" if max_staleness > 0 else "importance_sampling")


def find_formula(loss: Loss) -> LossFormula:
    """The formula of a loss. Raises ValueError for a name or a parameter that does not exist."""
    if loss.name not in LOSSES:
        raise ValueError(f"no loss is called {loss.name!r}; there are {', '.join(sorted(LOSSES))}")
    formula = LOSSES[loss.name]
    for name in loss.params:
        if name not in formula.params:
            raise ValueError(
                f"loss {loss.name!r} has no parameter {name!r}; its parameters: {', '.join(formula.params) or 'none'}"
            )
    return formula


def loss_tokens(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]], reads: Sequence[str]) -> LossTokens:
    """Lays datums end to end in float64. Raises ValueError, naming the datum and the field, where something is missing or of another length."""
    if len(data) != len(logprobs):
        raise ValueError(f"there are {len(data)} datums but logprobs for {len(logprobs)}")
    for index, (datum, new) in enumerate(zip(data, logprobs, strict=True)):
        for name in reads:
            if name not in datum.loss_inputs:
                raise ValueError(
                    f"datum {index} has no {name!r}, which the loss reads; it has {', '.join(sorted(datum.loss_inputs))}"
                )
            if len(datum.loss_inputs[name]) != len(new):
                raise ValueError(
                    f"datum {index}: {name!r} has {len(datum.loss_inputs[name])} positions, the new logprobs {len(new)}"
                )
    inputs = {name: _end_to_end([datum.loss_inputs[name] for datum in data]) for name in reads}
    sequence = np.repeat(np.arange(len(data)), [len(new) for new in logprobs])
    return LossTokens(_end_to_end(logprobs), inputs, sequence)


def _end_to_end(arrays: Sequence[NDArray[Any]]) -> Array:
    return np.concatenate(arrays).astype(np.float64) if len(arrays) else np.empty(0)


def evaluate(loss: Loss, data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> tuple[float, list[Array]]:
    """The summed loss of datums at given logprobs of their targets, and its gradient with respect to each, like them one array for each datum.

    Raises ValueError for an unknown loss or parameter and for datums that do not fit.
    """
    formula = find_formula(loss)
    loss_N, gradient_N = formula.function(loss_tokens(data, logprobs, formula.reads), **loss.params)
    return float(loss_N.sum()), split_by_datum(gradient_N, logprobs)


def split_by_datum(values_N: Array, like: Sequence[NDArray[Any]]) -> list[Array]:
    """Values of tokens laid end to end, cut into arrays as long as those of `like`."""
    return np.split(values_N, np.cumsum([len(each) for each in like])[:-1]) if like else []
