"""What a simulated forward pass checks and computes: shapes as a real trainer wants them, and the loss at the simulated log-probs.

Dimension suffixes: `T` positions of one datum, `S` positions of all datums of a call behind one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.errors import RequestRejected
from engine.backends.simulated.model import TokenModel
from engine.backends.values import Datum, ForwardBackwardResult, Loss

FIELDS: Mapping[str, tuple[str, ...]] = {
    "cross_entropy": ("target_tokens", "weights"),
    "importance_sampling": ("target_tokens", "logprobs", "advantages"),
    "ppo": ("target_tokens", "logprobs", "advantages"),
    "cispo": ("target_tokens", "logprobs", "advantages"),
}
"""Losses the simulated trainer knows, and what each reads of a datum."""


def check(data: Sequence[Datum], loss: Loss, max_context: int | None) -> None:
    """Raises RequestRejected naming the datum's index and the field that does not fit."""
    fields = FIELDS.get(loss.name)
    if fields is None:
        raise RequestRejected(f"unknown loss '{loss.name}'; this backend has {', '.join(sorted(FIELDS))}")
    if not data:
        raise RequestRejected("no datums: forward and forward_backward need at least one")
    for index, datum in enumerate(data):
        length = datum.model_input.length
        if length == 0:
            raise RequestRejected(f"datum {index}: model_input is empty")
        if max_context is not None and length > max_context:
            raise RequestRejected(
                f"datum {index}: model_input has {length} positions, the model's context is {max_context}"
            )
        inputs = datum.loss_inputs
        for field in fields:
            array = inputs.get(field)
            if array is None:
                raise RequestRejected(
                    f"datum {index}: '{field}' is missing; loss '{loss.name}' reads {', '.join(fields)}"
                )
            if array.shape != (length,):
                raise RequestRejected(
                    f"datum {index}: '{field}' has shape {array.shape}, model_input.length asks for ({length},)"
                )
    _check_values(data, fields)


def _check_values(data: Sequence[Datum], fields: tuple[str, ...]) -> None:
    for field in fields:
        values_S = np.concatenate([datum.loss_inputs[field] for datum in data])
        if field == "target_tokens":
            fine = values_S.dtype.kind in "iu" and int(values_S.min()) >= 0
            wanted = "token ids: integers, 0 or more"
        else:
            fine = values_S.dtype.kind in "fiu" and math.isfinite(float(values_S.sum(dtype=np.float64)))
            wanted = "finite numbers"
        if not fine:
            raise RequestRejected(f"datum {_culprit(data, field)}: '{field}' must hold {wanted}")


def _culprit(data: Sequence[Datum], field: str) -> int:
    for index, datum in enumerate(data):
        array = datum.loss_inputs[field]
        if field == "target_tokens":
            if array.dtype.kind not in "iu" or int(array.min()) < 0:
                return index
        elif array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            return index
    raise RequestRejected(f"'{field}': the datums' values add up to more than a float holds")


def forward(model: TokenModel, data: Sequence[Datum], loss: Loss) -> ForwardBackwardResult:
    """Log-probs of the targets under the simulated weights, and the loss summed over tokens."""

    def joined(field: str) -> NDArray[Any]:
        return np.concatenate([datum.loss_inputs[field] for datum in data])

    logprobs_S = model.logprobs(joined("target_tokens"))
    loss_value = float(_loss(loss, logprobs_S, joined).sum(dtype=np.float64))
    logprobs = []
    start = 0
    for datum in data:
        end = start + datum.model_input.length
        logprobs.append(logprobs_S[start:end])
        start = end
    return ForwardBackwardResult(loss_value, tuple(logprobs), {"tokens": float(len(logprobs_S))})


def _loss(loss: Loss, logprobs_S: NDArray[np.float32], joined: Callable[[str], NDArray[Any]]) -> Any:
    if loss.name == "cross_entropy":
        return -joined("weights") * logprobs_S
    advantages_S = joined("advantages")
    # Prompt positions carry the sampler's log-prob 0 and advantage 0: exp(-20) there is harmless, exp(+20) cannot occur.
    ratio_S: NDArray[np.float32] = np.exp(np.minimum(logprobs_S - joined("logprobs"), 20.0))
    if loss.name == "importance_sampling":
        return -ratio_S * advantages_S
    low = loss.params.get("clip_low_threshold", 0.0 if loss.name == "cispo" else 0.8)
    high = loss.params.get("clip_high_threshold", 4.0 if loss.name == "cispo" else 1.2)
    clipped_S = np.clip(ratio_S, low, high)
    if loss.name == "cispo":
        return -clipped_S * advantages_S * logprobs_S
    return -np.minimum(ratio_S * advantages_S, clipped_S * advantages_S)
