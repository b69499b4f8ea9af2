"""The learning rate of a recipe by flags: a peak, a warm-up, a shape; for supervised, preference and reinforcement learning alike.

    @attrs.frozen(kw_only=True)
    class Config(runs.RunConfig):
        learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))

gives `--learning-rate.peak 5e-4 --learning-rate.shape cosine --learning-rate.warmup-steps 10 --learning-rate.floor 0.1`, and
`train_rl(..., optimizer=AdamParams(rate.peak_for(model)), learning_rate=rate.over(steps))` follows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from engine.training.hyperparameters import learning_rate_for
from engine.training.schedules import LearningRateSchedule, ScheduleShape
from recipes.models import SMOLLM2, TINY, ModelConfig
from recipes.run_models import find_run_model

_positive: Any = attrs.validators.optional(attrs.validators.gt(0.0))


@attrs.frozen(kw_only=True)
class LearningRateConfig:
    """The learning rate over a run."""

    peak: float | None = attrs.field(default=None, validator=_positive)
    """Highest learning rate of AdamW; None: what is recommended for the model (`engine.training.hyperparameters`)."""
    shape: ScheduleShape = "linear"
    """constant, or falling along a line or half a cosine, to `floor` at the end."""
    warmup_steps: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Steps over which it rises to the peak."""
    floor: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """Share of the peak that is left at the end."""

    def peak_for(self, config: ModelConfig) -> float:
        """The peak, or the one that is recommended for the model. Raises ValueError saying what to give where there is none."""
        if self.peak is not None:
            return self.peak
        try:
            return learning_rate_for(_known_by(config.model), lora=config.lora_rank is not None)
        except ValueError as error:
            raise ValueError(f"--learning-rate.peak must be given: {error}") from None

    def over(self, steps: int) -> Callable[[int], float]:
        """The share of the peak at each of a run's steps. A warm-up longer than the run ends with it."""
        return LearningRateSchedule(self.shape, min(self.warmup_steps, max(0, steps - 1)), self.floor).over(steps)


def _known_by(model: str) -> str | Mapping[str, Any]:
    """What a model's learning rate is looked up by: its name, or, where it lies in a directory, its configuration; of a run, its base model's."""
    trained = find_run_model(model)
    if trained is not None:
        model, made_by = trained.base()
        model = str(made_by / "model") if model == TINY else model
    if model == SMOLLM2:
        return "SmolLM2-135M"
    path = Path(model).expanduser() / "config.json"
    if path.exists():
        configuration: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return configuration
    return model
