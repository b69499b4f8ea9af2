"""Preference pairs: datums for DPO, its metrics, and scores from pairwise comparisons.

Dimension suffixes: `P` pairs, `G` members of a group, `T` positions of one datum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum
from engine.training.custom import CustomLossResult, Declared, function_loss
from engine.training.losses import dpo

Array = NDArray[np.float64]


def preference_pair(
    chosen: Datum, rejected: Datum, reference_chosen: NDArray[Any], reference_rejected: NDArray[Any]
) -> tuple[Datum, Datum]:
    """Two supervised datums (`weights` 1 on the answer) with the reference policy's logprobs of their targets, as the loss `dpo` reads them.

    The reference is the policy before any preference training, also after a resume. A mini-batch holds whole pairs, chosen first.
    """
    return _with_reference("chosen", chosen, reference_chosen), _with_reference(
        "rejected", rejected, reference_rejected
    )


def _with_reference(which: str, datum: Datum, reference_T: NDArray[Any]) -> Datum:
    weights_T = datum.loss_inputs["weights"]
    if len(reference_T) != len(weights_T):
        raise ValueError(
            f"the {which} answer's datum has {len(weights_T)} positions but {len(reference_T)} reference logprobs"
        )
    if not np.isfinite(np.asarray(reference_T)[weights_T != 0]).all():
        raise ValueError(f"the reference logprobs of the {which} answer are not all finite")
    reference_T = np.where(weights_T != 0, reference_T, 0).astype(np.float32)
    return attrs.evolve(datum, loss_inputs={**datum.loss_inputs, "reference_logprobs": reference_T})


def dpo_loss(beta: float = 0.1) -> Declared:
    """DPO with its metrics as a custom loss on datums from `preference_pair`, chosen and rejected in turn. arXiv 2305.18290."""
    loss = function_loss(dpo, ("weights", "reference_logprobs"), beta=beta)

    def with_metrics(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> CustomLossResult:
        return attrs.evolve(loss(data, logprobs), metrics=dpo_metrics(data, logprobs, beta))

    return Declared(with_metrics, "group", ("weights", "reference_logprobs"), "dpo")


def dpo_metrics(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]], beta: float = 0.1) -> dict[str, float]:
    """Means over pairs: `dpo_loss`, `accuracy` (share with a positive margin), `margin`, and each side's implicit reward β·log(π/ref)."""
    rewards = np.array(
        [
            beta
            * float(
                np.dot(
                    datum.loss_inputs["weights"].astype(np.float64),
                    np.asarray(logprobs_T, np.float64) - datum.loss_inputs["reference_logprobs"],
                )
            )
            for datum, logprobs_T in zip(data, logprobs, strict=True)
        ]
    )
    if not len(rewards):
        return {}
    chosen_P, rejected_P = rewards[0::2], rewards[1::2]
    margins_P = chosen_P - rejected_P
    return {
        "dpo_loss": float(np.logaddexp(0.0, -margins_P).mean()),
        "accuracy": float((margins_P > 0).mean()),
        "margin": float(margins_P.mean()),
        "chosen_reward": float(chosen_P.mean()),
        "rejected_reward": float(rejected_P.mean()),
    }


def tournament_rewards(members: int, comparisons: Sequence[tuple[int, int, float]]) -> Array:
    """Rewards of a group's members from comparing pairs of them, shape (G,).

    Each comparison (i, j, score) has a score in [−1, 1], positive where i is better. A member's reward is its mean score over the comparisons it took part in,
    0 where there were none. Raises ValueError for members that do not exist and scores out of range.
    """
    totals_G, counts_G = np.zeros(members), np.zeros(members)
    for first, second, score in comparisons:
        if not (0 <= first < members and 0 <= second < members) or first == second:
            raise ValueError(f"a comparison of members {first} and {second} does not fit a group of {members}")
        if not -1 <= score <= 1:
            raise ValueError(
                f"the comparison of members {first} and {second} has the score {score}, which is not in [-1, 1]"
            )
        totals_G[[first, second]] += (score, -score)
        counts_G[[first, second]] += 1
    return totals_G / np.maximum(counts_G, 1)
