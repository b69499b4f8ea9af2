"""Losses by name: what each reads from a datum, and its formula on target log-probabilities.

Every loss is a sum over tokens. w = exp(log π - log μ) is the ratio of the current policy to the one that sampled
(`logprobs`); A is `advantages`. To add a loss, write one function and give it an entry in `LOSSES`.

Dimension suffixes: `N` tokens of all datums of a pass, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backends.errors import RequestRejected
from engine.backends.values import Datum, ImageChunk, Loss


@attrs.frozen(eq=False)
class LossBatch:
    """What a loss function sees."""

    logprobs_N: Tensor
    """Of the target tokens under the current policy; carries the gradient."""
    inputs: Mapping[str, Tensor]
    """The datums' arrays that the loss reads, each (N,), float32."""
    datum_N: Tensor
    """Which datum of the pass a token belongs to, for losses that reason about whole sequences."""
    params: Mapping[str, float]


LossFunction = Callable[[LossBatch], tuple[Tensor, dict[str, Tensor]]]
"""Gives the loss of each token (N,), and sums over tokens that become the pass's metrics, averaged."""


def cross_entropy(batch: LossBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """-weight · log π."""
    return -batch.inputs["weights"] * batch.logprobs_N, {}


def _ratio(batch: LossBatch) -> Tensor:
    return torch.exp(batch.logprobs_N - batch.inputs["logprobs"])


def importance_sampling(batch: LossBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """-w · A, whose gradient is -w · A · ∇ log π."""
    return -_ratio(batch) * batch.inputs["advantages"], {}


def ppo(batch: LossBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(w·A, clip(w)·A) (1707.06347); the two thresholds are bounds on w itself."""
    ratio_N, advantages_N = _ratio(batch), batch.inputs["advantages"]
    clipped_N = ratio_N.clamp(batch.params["clip_low_threshold"], batch.params["clip_high_threshold"])
    unclipped_gain_N, clipped_gain_N = ratio_N * advantages_N, clipped_N * advantages_N
    return -torch.minimum(unclipped_gain_N, clipped_gain_N), {
        "clip_fraction": (clipped_gain_N < unclipped_gain_N).sum()
    }


def cispo(batch: LossBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """-sg(clip(w)) · A · log π (2506.13585): a clipped token keeps a gradient, unlike in ppo."""
    ratio_N = _ratio(batch).detach()
    clipped_N = ratio_N.clamp(batch.params["clip_low_threshold"], batch.params["clip_high_threshold"])
    loss_N = -clipped_N * batch.inputs["advantages"] * batch.logprobs_N
    return loss_N, {"clip_fraction": ((clipped_N != ratio_N) & (batch.inputs["advantages"] != 0)).sum()}


@attrs.frozen
class LossSpec:
    """A loss, the arrays it reads beside `target_tokens`, and its parameters with their defaults."""

    function: LossFunction
    reads: tuple[str, ...]
    scale: str
    """The array that multiplies every term: where it is zero, a token has no gradient."""
    params: Mapping[str, float] = attrs.field(factory=dict)


_POLICY = ("logprobs", "advantages")

LOSSES: dict[str, LossSpec] = {
    "cross_entropy": LossSpec(cross_entropy, ("weights",), scale="weights"),
    "importance_sampling": LossSpec(importance_sampling, _POLICY, scale="advantages"),
    "ppo": LossSpec(ppo, _POLICY, scale="advantages", params={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
    "cispo": LossSpec(
        cispo, _POLICY, scale="advantages", params={"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    ),
}


def check_loss(loss: Loss) -> tuple[LossSpec, dict[str, float]]:
    """The loss's entry and its full parameters. Raises RequestRejected for a name or parameter that does not exist."""
    spec = LOSSES.get(loss.name)
    if spec is None:
        raise RequestRejected(
            f"loss {loss.name!r} is not known to the local backend; it has {', '.join(sorted(LOSSES))}"
        )
    for name, value in loss.params.items():
        if name not in spec.params:
            known = ", ".join(spec.params) or "none"
            raise RequestRejected(f"loss {loss.name!r} has no parameter {name!r}; its parameters: {known}")
        if not np.isfinite(value):
            raise RequestRejected(f"loss {loss.name!r}: parameter {name!r} is {value}, not a finite number")
    return spec, {**spec.params, **{name: float(value) for name, value in loss.params.items()}}


def check_data(data: Sequence[Datum], loss: Loss, spec: LossSpec, vocab_size: int, max_context: int | None) -> None:
    """Raises RequestRejected, naming the datum's index and the field, for the first datum that does not fit the loss."""
    if not data:
        raise RequestRejected("no datums were given: a pass needs at least one")
    for index, datum in enumerate(data):
        _check_input(index, datum, vocab_size, max_context)
        length = datum.model_input.length
        for field in ("target_tokens", *spec.reads):
            values = datum.loss_inputs.get(field)
            if values is None:
                raise RequestRejected(
                    f"datum {index}: loss_inputs has no {field!r}, which the loss {loss.name!r} reads"
                )
            _check_array(index, field, np.asarray(values), length)
        _check_ids(index, "target_tokens", np.asarray(datum.loss_inputs["target_tokens"]), vocab_size)


def _check_input(index: int, datum: Datum, vocab_size: int, max_context: int | None) -> None:
    if any(isinstance(chunk, ImageChunk) for chunk in datum.model_input.chunks):
        raise RequestRejected(f"datum {index}: model_input holds an image; the local backend trains on text only")
    length = datum.model_input.length
    if length == 0:
        raise RequestRejected(f"datum {index}: model_input is empty")
    if max_context is not None and length > max_context:
        raise RequestRejected(f"datum {index}: model_input has {length} tokens; the model takes at most {max_context}")
    _check_ids(index, "model_input", datum.model_input.tokens, vocab_size)


def _check_array(index: int, field: str, values_T: NDArray[np.generic], length: int) -> None:
    if values_T.shape != (length,):
        raise RequestRejected(
            f"datum {index}: {field!r} has shape {values_T.shape}, but model_input has {length} tokens: it must be ({length},)"
        )
    if values_T.dtype.kind not in "iufb":
        raise RequestRejected(f"datum {index}: {field!r} holds {values_T.dtype}, not numbers")
    if values_T.dtype.kind == "f" and not np.isfinite(values_T).all():
        position = int(np.flatnonzero(~np.isfinite(values_T))[0])
        raise RequestRejected(
            f"datum {index}: {field!r} is {values_T[position]} at position {position}, not a finite number"
        )


def _check_ids(index: int, field: str, ids_T: NDArray[np.generic], vocab_size: int) -> None:
    if ids_T.dtype.kind not in "iu":
        raise RequestRejected(f"datum {index}: {field!r} holds {ids_T.dtype}, not token ids")
    low, high = int(ids_T.min()), int(ids_T.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise RequestRejected(f"datum {index}: {field!r} has token id {wrong}; the vocabulary ends at {vocab_size - 1}")
