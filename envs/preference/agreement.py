"""How often a preference model agrees with comparisons that people (or somebody) made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import anyio

from engine.data import Comparison
from envs.preference.labels import LabelPreferenceModel, Scores, one_message
from envs.together import alike


class Agreement:
    """What an `actors.Evaluation` runs on a preference model in training.

    Metrics: `accuracy` (a tie is half right), `mean_score` (of the chosen answer), `first_bias`: by how much it prefers what stands first, between −1 and 1.
    """

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        model: Callable[[Scores], LabelPreferenceModel],
        *,
        concurrency: int = 64,
    ) -> None:
        """`model` makes a preference model of a policy. `concurrency`: most comparisons at once."""
        if not comparisons:
            raise ValueError("agreement needs comparisons: there are none")
        self._comparisons = comparisons
        self._model = model
        self._concurrency = concurrency

    async def __call__(self, policy: Scores) -> Mapping[str, float]:
        """Compares all, in both orders."""
        model, slots = self._model(policy), anyio.Semaphore(self._concurrency)

        async def both_orders(comparison: Comparison) -> tuple[float, float]:
            chosen, rejected = one_message(comparison.chosen), one_message(comparison.rejected)
            async with slots:
                first = await model.preference(comparison.prompt, chosen, rejected)
                second = await model.preference(comparison.prompt, rejected, chosen)
            return first, second

        found = await alike([functools.partial(both_orders, comparison) for comparison in self._comparisons])
        scores = [(first - second) / 2 for first, second in found]
        return {
            "accuracy": fmean((score > 0) + 0.5 * (score == 0) for score in scores),
            "mean_score": fmean(scores),
            "first_bias": fmean((first + second) / 2 for first, second in found),
        }
