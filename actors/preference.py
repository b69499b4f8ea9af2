"""Preference training beside `train_supervised`: the figures of a step, and the evaluation on held-out pairs.

    train_supervised(batches=pairs, loss=Loss("dpo"), prepare=with_reference_logprobs, metrics=pair_metrics(beta), ...)

The reference policy is the run's own (`actors.reference`): frozen before the first step, the original one also after a resume.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import anyio

from actors.batches import StepMetrics
from actors.evaluator import EvaluatedPolicy, Evaluation
from actors.scoring import CONCURRENCY, Scorer, score_targets, with_reference_logprobs
from engine.backends.values import Datum
from engine.training.preference import dpo_metrics


def pair_metrics(beta: float) -> StepMetrics:
    """Metrics of a DPO step: `dpo_loss`, `accuracy`, `margin`, `chosen_reward`, `rejected_reward`, of the policy before the step."""
    return functools.partial(dpo_metrics, beta=beta)


def pair_evaluation(
    name: str,
    pairs: Sequence[Datum],
    reference: Scorer,
    *,
    beta: float = 0.1,
    every: int = 20,
    concurrency: int = CONCURRENCY,
    blocking: bool = False,
) -> Evaluation:
    """Scores held-out pairs, chosen and rejected in turn: the metrics of `pair_metrics`.

    The reference scores them once, however often they are evaluated; at most `concurrency` sequences are scored at a time. The untrained policy prefers
    nothing: its margins are 0 but for rounding, so that its accuracy means nothing.

    Raises ValueError where there are no pairs, or half of one.
    """
    if not pairs or len(pairs) % 2:
        raise ValueError(f"evaluation '{name}': pairs are two datums each, and there are {len(pairs)}")
    scored: list[Datum] = []
    scoring = anyio.Lock()

    async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
        async with scoring:
            if not scored:
                scored.extend(await with_reference_logprobs(pairs, reference, concurrency=concurrency))
        return dpo_metrics(scored, await score_targets(policy, scored, concurrency=concurrency), beta)

    return Evaluation(name, run, every=every, blocking=blocking)
