"""Losses by name: what each reads from a datum, its parameters, and whether given datums fit. The formulas are in `loss_formulas`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from engine.backends.checks import check_datums
from engine.backends.errors import RequestRejected
from engine.backends.local import loss_formulas as formulas
from engine.backends.local.loss_formulas import LossFunction
from engine.backends.values import Datum, Loss


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
    """Datums come in pairs, whose order and company must be kept; the loss of a pair depends on no other."""


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
    check_datums(
        data,
        loss.name,
        spec.reads,
        vocab_size=vocab_size,
        max_context=max_context,
        no_images="the local backend trains on text only",
        pairs=spec.pairs,
    )
