"""Drawing tokens: one random stream a sample, and the choice from a distribution.

Dimension suffixes: `B` rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from engine.backends.values import SamplingParams

_BLOCK = 64
_LARGEST = float(np.float32(1) - np.float32(2**-24))
"""The largest float32 below one: a draw is never one, not even after rounding, so it always falls inside the distribution."""


class RandomStream:
    """The uniform numbers of sample `index` of a request: number n is the same whatever else is being sampled.

    Counter-based (Philox, Salmon et al. 2011), keyed by (seed, index), so streams of different keys do not overlap.
    """

    def __init__(self, seed: int, index: int) -> None:
        key = np.array([seed & (2**64 - 1), index], np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=key))
        self._block: list[float] = []

    def next(self) -> float:
        """The next number in [0, 1)."""
        if not self._block:
            self._block = np.minimum(self._generator.random(_BLOCK), _LARGEST)[::-1].tolist()
        return self._block.pop()


@attrs.frozen(eq=False)
class Rules:
    """How each row of a batch is drawn; made anew only when rows come or go."""

    inverse_temperature_B: Tensor | None
    """None: every row at temperature 1. Greedy rows have 1 here."""
    greedy_B: Tensor | None
    """None: no row is greedy."""
    truncated_rows: Sequence[tuple[int, SamplingParams]]
    """Rows with top-k or top-p."""

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> Rules:
        """The rules of a batch whose rows have `params`."""
        inverse = [1.0 / one.temperature if one.temperature > 0 else 1.0 for one in params]
        greedy = [one.temperature == 0 for one in params]
        truncated = [
            (row, one) for row, one in enumerate(params) if one.temperature > 0 and (one.top_k > 0 or one.top_p < 1)
        ]
        return cls(
            torch.tensor(inverse, device=device)[:, None] if any(value != 1 for value in inverse) else None,
            torch.tensor(greedy, device=device) if any(greedy) else None,
            truncated,
        )


def choose(logits_B_V: Tensor, uniform_B: Sequence[float], rules: Rules) -> tuple[Tensor, Tensor]:
    """Tokens (B,) and their log-probabilities (B,) under the model's own distribution (temperature 1, nothing cut off).

    A token is drawn by inverting the distribution function at the row's uniform number.
    """
    logprobs_B_V = logits_B_V.log_softmax(-1)
    if rules.inverse_temperature_B is None:
        weights_B_V = logprobs_B_V.exp()
    else:
        weights_B_V = (logprobs_B_V * rules.inverse_temperature_B).softmax(-1)
    for row, params in rules.truncated_rows:
        _truncate(weights_B_V[row], params)
    reached_B_V = weights_B_V.cumsum(-1)
    goal_B = torch.tensor(uniform_B, dtype=torch.float32, device=logits_B_V.device) * reached_B_V[:, -1]
    tokens_B = torch.searchsorted(reached_B_V, goal_B[:, None], right=True)[:, 0]
    if rules.greedy_B is not None:
        tokens_B = torch.where(rules.greedy_B, logits_B_V.argmax(-1), tokens_B)
    return tokens_B, logprobs_B_V.gather(-1, tokens_B[:, None])[:, 0]


def _truncate(weights_V: Tensor, params: SamplingParams) -> None:
    """Sets to zero, in place, what top-k and then top-p cut off.

    Top-p keeps the fewest most probable tokens that together have at least that share of what top-k left.
    """
    kept = params.top_k if 0 < params.top_k < len(weights_V) else len(weights_V)
    sorted_K, order_K = weights_V.topk(kept)
    if params.top_p < 1:
        before_K = sorted_K.cumsum(-1) - sorted_K
        sorted_K = sorted_K.masked_fill(before_K >= params.top_p * sorted_K.sum(), 0)
    weights_V.zero_()
    weights_V[order_K] = sorted_K
