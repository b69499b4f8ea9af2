"""Who does the work: source, sampler, rollouts, trainer, evaluator, logger; and the programs that wire them.

Names are imported when first used, so that a recipe's `--help` does not pay for what it does not run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.batches import BatchDataset, Minibatches
    from actors.checkpoint import RunSettings
    from actors.evaluator import EvaluatedPolicy, Evaluation, group_evaluation, nll_evaluation
    from actors.learning import StopRequest
    from actors.prediction import LengthPredictor, RunningMean
    from actors.preference import pair_evaluation, pair_metrics
    from actors.programs import KLPenalty, RLSettings, train_rl, train_supervised
    from actors.reference import ReferencePolicy, open_reference
    from actors.reports import Observer
    from actors.run import RunResult
    from actors.sampler import Sampler, SamplerSettings, SamplingFailed
    from actors.schedule import Schedule
    from actors.scoring import Scorer, ScorersByTag, ScoreSource, score_targets, with_reference_logprobs

_HOMES = {
    "BatchDataset": "actors.batches",
    "EvaluatedPolicy": "actors.evaluator",
    "Evaluation": "actors.evaluator",
    "KLPenalty": "actors.rl_settings",
    "LengthPredictor": "actors.prediction",
    "Minibatches": "actors.batches",
    "Observer": "actors.reports",
    "RLSettings": "actors.rl_settings",
    "ReferencePolicy": "actors.reference",
    "RunResult": "actors.run",
    "RunSettings": "actors.checkpoint",
    "RunningMean": "actors.prediction",
    "Sampler": "actors.sampler",
    "SamplerSettings": "actors.retries",
    "SamplingFailed": "actors.retries",
    "Schedule": "actors.schedule",
    "ScoreSource": "actors.scoring",
    "Scorer": "actors.scoring",
    "ScorersByTag": "actors.scoring",
    "StopRequest": "actors.learning",
    "group_evaluation": "actors.evaluator",
    "nll_evaluation": "actors.evaluator",
    "open_reference": "actors.reference",
    "pair_evaluation": "actors.preference",
    "pair_metrics": "actors.preference",
    "score_targets": "actors.scoring",
    "train_rl": "actors.programs",
    "train_supervised": "actors.programs",
    "with_reference_logprobs": "actors.scoring",
}

__all__ = [
    "BatchDataset",
    "EvaluatedPolicy",
    "Evaluation",
    "KLPenalty",
    "LengthPredictor",
    "Minibatches",
    "Observer",
    "RLSettings",
    "ReferencePolicy",
    "RunResult",
    "RunSettings",
    "RunningMean",
    "Sampler",
    "SamplerSettings",
    "SamplingFailed",
    "Schedule",
    "ScoreSource",
    "Scorer",
    "ScorersByTag",
    "StopRequest",
    "group_evaluation",
    "nll_evaluation",
    "open_reference",
    "pair_evaluation",
    "pair_metrics",
    "score_targets",
    "train_rl",
    "train_supervised",
    "with_reference_logprobs",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'actors' has no attribute '{name}'")
