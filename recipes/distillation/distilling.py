"""What recipes of on-policy distillation share: their settings, and the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from recipes import runs
from recipes.distillation.problems import ProblemConfig
from recipes.learning_rates import LearningRateConfig

if TYPE_CHECKING:
    from actors import Evaluation, RLSettings, RunResult, StopRequest
    from actors.scoring import ScoredBy
    from envs.contracts import GroupDataset
    from recipes.models import OpenedModel

_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class DistillationConfig(ProblemConfig):
    """A student that learns from what a teacher says of its own answers."""

    steps: int = attrs.field(default=30, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=32))
    """Pace: synchronous by default."""
    kl_coef: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    """What a nat of KL to the teacher costs."""
    kl_discount: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """How much a token answers for the KL of those after it, by a factor for each token; 0: for its own alone."""
    reward_weight: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """What the problems' own rewards count beside it, centred over a group's answers. Only sums have any; 0: the teacher alone."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=2))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    answer_tokens: int = attrs.field(default=8, validator=_positive)
    """Longest answer, in tokens."""
    warm_up: int = attrs.field(default=200, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny models first take."""
    evaluate_every: int = attrs.field(default=10, validator=_positive)
    """Steps between evaluations: KL to the teacher, and reward, on held-out problems."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.reward_weight and (self.data is not None or self.dataset is not None):
            raise ValueError("reward_weight counts the rewards of sums; rows of prompts have none")


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "schedule": Schedule(groups_per_step=16),
    "learning_rate": LearningRateConfig(peak=1e-4, warmup_steps=5),
    "answer_tokens": 256,
    "warm_up": 0,
    "evaluation_problems": 32,
    "checkpoint_every": 5,
}
"""A student that speaks already needs no warm-up."""


async def distil(
    config: DistillationConfig,
    directory: Path,
    student: OpenedModel,
    problems: tuple[GroupDataset, GroupDataset | None],
    teacher: ScoredBy,
    name: str,
    stop: StopRequest,
    *,
    privileged: bool = False,
) -> RunResult:
    """Trains the student on the KL to the teacher; `problems`: to train on, and held out. `privileged`: the teacher reads the problems' teacher prompts."""
    from actors import ScoreSource, group_evaluation, train_rl
    from engine.telemetry import display
    from recipes.distillation.telling import EVALUATION, TEACHER_KL

    groups, held_out = problems
    settings = _settings(config, teacher, privileged)

    def evaluated(to: ScoredBy) -> list[Evaluation]:
        if held_out is None:
            return []
        source = ScoreSource(TEACHER_KL, to, privileged)
        options: dict[str, Any] = {"every": config.evaluate_every, "seed": config.seed, "kl_to": [source]}
        return [group_evaluation(EVALUATION, held_out, settings.rollout, **options)]

    with display.open(config.steps, name) as live:
        return await train_rl(
            student.backend,
            groups=groups,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=evaluated if teacher == "initial" else evaluated(teacher),
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _settings(config: DistillationConfig, teacher: ScoredBy, privileged: bool) -> RLSettings:
    from actors import KLPenalty, RLSettings
    from engine.backends.values import AdamParams, SamplingParams
    from engine.training.advantages import weighted
    from envs.rollout import RolloutSettings
    from recipes.distillation.telling import TEACHER_KL

    penalty = KLPenalty(
        coef=config.kl_coef,
        to=teacher,
        discount=config.kl_discount,
        centre=False,
        privileged=privileged,
        metric=TEACHER_KL,
    )
    return RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=config.answer_tokens)),
        advantages=weighted("centred", config.reward_weight),
        kl=[penalty],
        optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        samples_per_step=4,
        seed=config.seed,
    )
