"""Formulas of losses on target log-probabilities, differentiable.

Every loss is a sum over tokens. μ sampled (`logprobs`), π is in training, w = π/μ; A is `advantages`, zero outside actions; sg(...) is not
differentiated. `engine.training.losses` has the same formulas with their gradients written out; tests compare the two. To add a loss, write one
function here and give it an entry in `losses.LOSSES`.

Dimension suffixes: `N` tokens of all datums of a pass, one after the other; `S` datums, each a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@attrs.frozen(eq=False)
class LossBatch:
    """What a loss function sees."""

    logprobs_N: Tensor
    """Log-probabilities of the target tokens under the current policy; carries the gradient."""
    inputs: Mapping[str, Tensor]
    """The datums' arrays that the loss reads, each (N,), float32."""
    datum_N: Tensor
    """Which datum of the pass a token belongs to, for losses that reason about whole sequences."""
    params: Mapping[str, float]

    @property
    def log_ratio(self) -> Tensor:
        """log w."""
        return self.logprobs_N - self.inputs["logprobs"]

    @property
    def trained(self) -> Tensor:
        """1 where the mask is, float32."""
        return (self.inputs["mask"] > 0).to(self.logprobs_N.dtype)

    def sequence_sums(self, values_N: Tensor) -> Tensor:
        """Σ over the trained tokens of a token's sequence."""
        return _sums_by(values_N * self.trained, self.datum_N)[self.datum_N]

    def sequence_lengths(self) -> Tensor:
        """Trained tokens of a token's sequence, at least 1."""
        return self.sequence_sums(torch.ones_like(self.logprobs_N)).clamp(min=1)


LossResult = tuple[Tensor, dict[str, Tensor]]
LossFunction = Callable[[LossBatch], LossResult]
"""Gives the loss of each token (N,), and sums over tokens that become the pass's metrics, averaged."""


def _sums_by(values_N: Tensor, datum_N: Tensor) -> Tensor:
    sums_S = torch.zeros(int(datum_N[-1]) + 1, dtype=values_N.dtype, device=values_N.device)
    return sums_S.index_add(0, datum_N, values_N)


# ---- token by token ------------------------------------------------------------------------------------------------------------------


def cross_entropy(batch: LossBatch) -> LossResult:
    """-weight · log π."""
    return -batch.inputs["weights"] * batch.logprobs_N, {}


def importance_sampling(batch: LossBatch) -> LossResult:
    """-w · A, whose gradient is -w · A · ∇ log π."""
    return -batch.log_ratio.exp() * batch.inputs["advantages"], {}


def ppo(batch: LossBatch) -> LossResult:
    """-min(w·A, clip(w)·A) (1707.06347); the two thresholds are bounds on w itself. With the upper one raised it is DAPO's (2503.14476)."""
    return _clipped(batch, batch.log_ratio.exp())


def _clipped(batch: LossBatch, ratio_N: Tensor) -> LossResult:
    advantages_N = batch.inputs["advantages"]
    clipped_N = ratio_N.clamp(batch.params["clip_low_threshold"], batch.params["clip_high_threshold"])
    unclipped_gain_N, clipped_gain_N = ratio_N * advantages_N, clipped_N * advantages_N
    return -torch.minimum(unclipped_gain_N, clipped_gain_N), {
        "clip_fraction": (clipped_gain_N < unclipped_gain_N).sum()
    }


def dual_clip_ppo(batch: LossBatch) -> LossResult:
    """ppo whose gain is at least c·A where A < 0 (1912.09729)."""
    loss_N, metrics = ppo(batch)
    advantages_N = batch.inputs["advantages"]
    floor_N = torch.where(advantages_N < 0, -batch.params["dual_clip"] * advantages_N, torch.inf)
    return torch.minimum(loss_N, floor_N), metrics


def decoupled_ppo(batch: LossBatch) -> LossResult:
    """-ρ·min(r·A, clip(r)·A), r = π/π_p, ρ = min(π_p/μ, cap) (2110.00641, 2505.24298)."""
    proximal_N = batch.inputs["proximal_logprobs"]
    weights_N = (proximal_N - batch.inputs["logprobs"]).exp().clamp(max=batch.params["cap"])
    loss_N, metrics = _clipped(batch, (batch.logprobs_N - proximal_N).exp())
    return weights_N * loss_N, metrics


def cispo(batch: LossBatch) -> LossResult:
    """-sg(clip(w)) · A · log π (2506.13585): a clipped token keeps a gradient, unlike in ppo."""
    ratio_N = batch.log_ratio.detach().exp()
    clipped_N = ratio_N.clamp(batch.params["clip_low_threshold"], batch.params["clip_high_threshold"])
    return _weighted_log_likelihood(batch, clipped_N), {
        "clip_fraction": ((clipped_N != ratio_N) & (batch.inputs["advantages"] != 0)).sum()
    }


def _weighted_log_likelihood(batch: LossBatch, weights_N: Tensor) -> Tensor:
    return -weights_N.detach() * batch.inputs["advantages"] * batch.logprobs_N


def aipo(batch: LossBatch) -> LossResult:
    """-sg(min(w, cap)) · A · log π (2505.24034)."""
    return _weighted_log_likelihood(batch, batch.log_ratio.exp().clamp(max=batch.params["cap"])), {}


def sapo(batch: LossBatch) -> LossResult:
    """-(4/τ)·σ(τ(w - 1))·A, τ by the sign of A (2511.20347)."""
    advantages_N, params = batch.inputs["advantages"], batch.params
    tau_N = torch.full_like(advantages_N, params["tau_negative"]).masked_fill_(advantages_N > 0, params["tau_positive"])
    return -4 / tau_N * torch.sigmoid(tau_N * (batch.log_ratio.exp() - 1)) * advantages_N, {}


def dppo_tv(batch: LossBatch) -> LossResult:
    """-w·A, and nothing where the token's probability has already moved A's way by more than the threshold (2602.04879)."""
    advantages_N = batch.inputs["advantages"]
    moved_N = batch.logprobs_N.detach().exp() - batch.inputs["logprobs"].exp()
    far_N = (advantages_N != 0) & (moved_N * advantages_N.sign() > batch.params["threshold"])
    return _masked(-batch.log_ratio.exp() * advantages_N, far_N)


def _masked(loss_N: Tensor, dropped_N: Tensor) -> LossResult:
    return loss_N.masked_fill(dropped_N, 0.0), {"masked_fraction": dropped_N.sum()}


def dro(batch: LossBatch) -> LossResult:
    """-(A·log π - β/2·(log w)²) on the trained tokens (2405.19107)."""
    pull_N = batch.params["beta"] / 2 * batch.log_ratio**2
    return -(batch.inputs["advantages"] * batch.logprobs_N - pull_N) * batch.trained, {}


# ---- sequence by sequence ------------------------------------------------------------------------------------------------------------


def gspo(batch: LossBatch) -> LossResult:
    """ppo on s = exp(mean log w) of each sequence, which counts once: each of its tokens carries 1/length of it (2507.18071)."""
    lengths_N = batch.sequence_lengths()
    loss_N, metrics = _clipped(batch, (batch.sequence_sums(batch.log_ratio) / lengths_N).exp())
    return loss_N / lengths_N * batch.trained, metrics


def topr(batch: LossBatch) -> LossResult:
    """-sg(weight) · A · log π, weight 1 for A > 0, clip(w, 0, 1) of the whole sequence for A < 0 (2503.14286)."""
    tapered_N = batch.sequence_sums(batch.log_ratio.detach()).clamp(max=0).exp()
    return _weighted_log_likelihood(batch, torch.where(batch.inputs["advantages"] > 0, 1.0, tapered_N)), {}


def opsm(batch: LossBatch) -> LossResult:
    """ppo without the tokens of A < 0 in sequences with mean(log μ - log π) > δ (2512.02556)."""
    loss_N, metrics = ppo(batch)
    drift_N = -batch.sequence_sums(batch.log_ratio.detach()) / batch.sequence_lengths()
    kept_N, masked = _masked(loss_N, (batch.inputs["advantages"] < 0) & (drift_N > batch.params["delta"]))
    return kept_N, {**metrics, **masked}


# ---- over the whole pass -------------------------------------------------------------------------------------------------------------


def m2po(batch: LossBatch) -> LossResult:
    """-w·A on the most tokens, nearest to μ first, that keep the pass's mean (log w)² at most τ (2510.01161)."""
    trained_N = batch.inputs["mask"] > 0
    squares_N = batch.log_ratio.detach().double() ** 2
    sorted_squares, order = squares_N[trained_N].sort(stable=True)
    counts = torch.arange(1, len(order) + 1, device=order.device)
    fits = sorted_squares.cumsum(0) / counts <= batch.params["tau"]
    kept = torch.zeros_like(fits).index_put((order,), fits)
    dropped_N = trained_N.clone()
    dropped_N[trained_N] = ~kept
    return _masked(-batch.log_ratio.exp() * batch.inputs["advantages"], dropped_N)


def dpo(batch: LossBatch) -> LossResult:
    """-log σ(β[(log π_c - log ref_c) - (log π_r - log ref_r)]) of datums in pairs, chosen then rejected (2305.18290).

    A pair's value is shared equally by its tokens, so that it stands wherever the pair does.
    """
    weights_N = batch.inputs["weights"]
    sums_S = _sums_by(weights_N * (batch.logprobs_N - batch.inputs["reference_logprobs"]), batch.datum_N)
    loss_P = -logsigmoid(batch.params["beta"] * (sums_S[0::2] - sums_S[1::2]))
    pair_N = batch.datum_N // 2
    return loss_P[pair_N] / _sums_by(torch.ones_like(weights_N), pair_N)[pair_N], {}


# ---- KL to a reference ---------------------------------------------------------------------------------------------------------------


def kl_k1(batch: LossBatch) -> LossResult:
    """coef · sg(w) · l, l = log π - log π_ref."""
    return _kl(batch, lambda log_N: log_N)


def kl_k2(batch: LossBatch) -> LossResult:
    """coef · sg(w) · l²/2: of the four values, the one whose gradient is the KL's."""
    return _kl(batch, lambda log_N: log_N**2 / 2)


def kl_k3(batch: LossBatch) -> LossResult:
    """coef · sg(w) · (e^(-l) - 1 + l)."""
    return _kl(batch, lambda log_N: torch.expm1(-log_N) + log_N)


def kl_k3_straight_through(batch: LossBatch) -> LossResult:
    """k3's value with k2's gradient."""

    def estimate(log_N: Tensor) -> Tensor:
        k2_N = log_N**2 / 2
        return (torch.expm1(-log_N) + log_N - k2_N).detach() + k2_N

    return _kl(batch, estimate)


def _kl(batch: LossBatch, estimate: Callable[[Tensor], Tensor]) -> LossResult:
    weights_N = batch.params["coef"] * batch.log_ratio.detach().exp() * batch.trained
    return weights_N * estimate(batch.logprobs_N - batch.inputs["reference_logprobs"]), {}
