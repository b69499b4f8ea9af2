"""Means in place of sums: losses are sums over tokens, and dividing is done once, in the advantages, with the counts of the whole step.

A normaliser that divided inside a minibatch would make the gradient depend on how the step was cut. Here the cut changes nothing: scale the step's datums,
then split them as you like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import attrs
import numpy as np

from engine.backends.values import Datum

Normalization = Literal["sum", "token", "sequence", "constant"]


def normalize(
    data: Sequence[Datum], kind: Normalization, *, constant: float = 0.0, field: str = "advantages"
) -> list[Datum]:
    """The datums of a whole optimizer step, `field` scaled so that the summed loss is a mean.

    - `sum`: as they are.
    - `token`: over all trained tokens of the step (DAPO, arXiv 2503.14476): a long answer counts for its length.
    - `sequence`: over each sequence, then over sequences (GRPO, arXiv 2402.03300): every sequence counts the same, so tokens of long ones count less.
    - `constant`: divided by `constant` × sequences (Dr. GRPO, arXiv 2503.20783, with the largest completion length).

    For supervised data give `field="weights"`; the weights then are their own mask. Raises ValueError for `constant` without a positive constant.
    """
    if kind not in get_args(Normalization):
        raise ValueError(f"no normalization is called {kind!r}; there are {', '.join(get_args(Normalization))}")
    if kind == "constant" and constant <= 0:
        raise ValueError(
            f"normalization 'constant' needs a positive constant, such as the most tokens of a completion, not {constant}"
        )
    if kind == "sum" or not data:
        return list(data)
    counted = field if field == "weights" else "mask"
    counts = [float(np.sum(datum.loss_inputs[counted])) for datum in data]
    if kind == "token":
        scales = [1 / max(sum(counts), 1.0)] * len(data)
    elif kind == "sequence":
        scales = [1 / (max(count, 1.0) * len(data)) for count in counts]
    else:
        scales = [1 / (constant * len(data))] * len(data)
    return [_scaled(datum, field, scale) for datum, scale in zip(data, scales, strict=True)]


def _scaled(datum: Datum, field: str, scale: float) -> Datum:
    return attrs.evolve(datum, loss_inputs={**datum.loss_inputs, field: datum.loss_inputs[field] * np.float32(scale)})
