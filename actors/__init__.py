"""Who does the work: source, sampler, rollouts, trainer, evaluator, logger; and the programs that wire them.

Names are imported when first used, so that a recipe's `--help` does not pay for what it does not run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.batches import BatchDataset
    from actors.checkpoint import RunSettings
    from actors.evaluator import Evaluation, group_evaluation
    from actors.learning import StopRequest
    from actors.prediction import LengthPredictor, RunningMean
    from actors.programs import RLSettings, train_rl, train_supervised
    from actors.reports import Observer
    from actors.run import RunResult
    from actors.sampler import Sampler, SamplerSettings, SamplingFailed
    from actors.schedule import Schedule

_HOMES = {
    "BatchDataset": "actors.batches",
    "Evaluation": "actors.evaluator",
    "LengthPredictor": "actors.prediction",
    "Observer": "actors.reports",
    "RLSettings": "actors.programs",
    "RunResult": "actors.run",
    "RunSettings": "actors.checkpoint",
    "RunningMean": "actors.prediction",
    "Sampler": "actors.sampler",
    "SamplerSettings": "actors.sampler",
    "SamplingFailed": "actors.sampler",
    "Schedule": "actors.schedule",
    "StopRequest": "actors.learning",
    "group_evaluation": "actors.evaluator",
    "train_rl": "actors.programs",
    "train_supervised": "actors.programs",
}

__all__ = [
    "BatchDataset",
    "Evaluation",
    "LengthPredictor",
    "Observer",
    "RLSettings",
    "RunResult",
    "RunSettings",
    "RunningMean",
    "Sampler",
    "SamplerSettings",
    "SamplingFailed",
    "Schedule",
    "StopRequest",
    "group_evaluation",
    "train_rl",
    "train_supervised",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'actors' has no attribute '{name}'")
