"""Losses by name: what each reads from a datum, its parameters, and whether given datums fit. The formulas are in `loss_formulas`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.errors import RequestRejected
from engine.backends.local import loss_formulas as formulas
from engine.backends.local.loss_formulas import LossFunction
from engine.backends.values import Datum, ImageChunk, Loss


@attrs.frozen
class LossSpec:
    """A loss, the arrays it reads beside `target_tokens`, and its parameters with their defaults."""

    function: LossFunction
    reads: tuple[str, ...]
    scale: str
    """The array that multiplies every term: where it is zero, a token has no gradient."""
    params: Mapping[str, float] = attrs.field(factory=dict)
    whole_pass: bool = False
    """The loss of a token depends on other datums of the pass: splitting the pass must not show, and the order of the datums must be kept."""
    pairs: bool = False
    """Datums come in pairs."""


_POLICY = ("logprobs", "advantages")
_MASKED = (*_POLICY, "mask")
_KL = ("logprobs", "mask", "reference_logprobs")
_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}

LOSSES: dict[str, LossSpec] = {
    "cross_entropy": LossSpec(formulas.cross_entropy, ("weights",), scale="weights"),
    "importance_sampling": LossSpec(formulas.importance_sampling, _POLICY, scale="advantages"),
    "ppo": LossSpec(formulas.ppo, _POLICY, scale="advantages", params=_CLIP),
    "dapo": LossSpec(formulas.ppo, _POLICY, scale="advantages", params={**_CLIP, "clip_high_threshold": 1.28}),
    "dual_clip_ppo": LossSpec(formulas.dual_clip_ppo, _POLICY, scale="advantages", params={**_CLIP, "dual_clip": 3.0}),
    "decoupled_ppo": LossSpec(
        formulas.decoupled_ppo, (*_POLICY, "proximal_logprobs"), scale="advantages", params={**_CLIP, "cap": 2.0}
    ),
    "cispo": LossSpec(
        formulas.cispo, _POLICY, scale="advantages", params={"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    ),
    "aipo": LossSpec(formulas.aipo, _POLICY, scale="advantages", params={"cap": 4.0}),
    "sapo": LossSpec(formulas.sapo, _POLICY, scale="advantages", params={"tau_positive": 1.0, "tau_negative": 1.05}),
    "dppo_tv": LossSpec(formulas.dppo_tv, _POLICY, scale="advantages", params={"threshold": 0.15}),
    "dro": LossSpec(formulas.dro, _MASKED, scale="mask", params={"beta": 0.05}),
    "gspo": LossSpec(
        formulas.gspo,
        _MASKED,
        scale="mask",
        params={"clip_low_threshold": 1 - 3e-4, "clip_high_threshold": 1 + 4e-4},
    ),
    "topr": LossSpec(formulas.topr, _MASKED, scale="advantages"),
    "opsm": LossSpec(formulas.opsm, _MASKED, scale="advantages", params={"delta": 0.1, **_CLIP}),
    "m2po": LossSpec(formulas.m2po, _MASKED, scale="advantages", params={"tau": 0.04}, whole_pass=True),
    "dpo": LossSpec(
        formulas.dpo,
        ("weights", "reference_logprobs"),
        scale="weights",
        params={"beta": 0.1},
        whole_pass=True,
        pairs=True,
    ),
    "kl_k1": LossSpec(formulas.kl_k1, _KL, scale="mask", params={"coef": 1.0}),
    "kl_k2": LossSpec(formulas.kl_k2, _KL, scale="mask", params={"coef": 1.0}),
    "kl_k3": LossSpec(formulas.kl_k3, _KL, scale="mask", params={"coef": 1.0}),
    "kl_k3+": LossSpec(formulas.kl_k3_straight_through, _KL, scale="mask", params={"coef": 1.0}),
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
    if spec.pairs and len(data) % 2:
        raise RequestRejected(
            f"the loss {loss.name!r} takes datums in pairs, but there are {len(data)}: datum {len(data) - 1} is alone"
        )
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
