"""How groups are played and trained: the settings of `train_rl`, and what follows from them for the actors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import attrs

from actors.objective import LossChoice
from actors.retries import SamplerSettings
from actors.scoring import CONCURRENCY, INITIAL, NEWEST, ScoredBy, ScorersByTag, ScoreSource
from actors.shaping import PROXIMAL
from engine.backends.values import AdamParams
from engine.training.advantages import AdvantageFn
from engine.training.assembly import TurnFilter
from engine.training.corrections import Correction, resolve_correction
from engine.training.kl import KL_KINDS, KLKind
from engine.training.normalization import Normalization
from engine.training.transforms import (
    Transform,
    TransformFn,
    attached,
    correction,
    kl_in_reward,
    normalization,
    resolve_transform,
)
from envs.rollout import RolloutSettings

_at_least_one: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class KLPenalty:
    """KL to another policy in the reward: −coef·KL is added to the advantage of every sampled token."""

    coef: float
    """What a nat costs."""
    to: ScoredBy = INITIAL
    """The other policy: `initial` (the run's reference policy), `newest`, or one of your own: a teacher, or one for each tag."""
    kind: KLKind = attrs.field(default="k1", validator=attrs.validators.in_(KL_KINDS))
    """The estimator. In a reward k1 and k3 are unbiased, and k3+ is k3."""
    discount: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """How much a token answers for the KL of those after it in its sequence, by a factor for each token; 0: for its own alone."""
    centre: bool = True
    """Take the step's mean off, so that a common drift moves nothing; for that the whole step is awaited. For distillation, where the KL is all there is,
    False."""
    privileged: bool = False
    """Whether the other policy reads the turns' teacher prompts (`Observation.teacher_prompt`) in place of their prompts."""
    metric: str = "kl_policy_base"
    """Name of the mean KL in the step's metrics; with one policy for each tag, `<metric>/<tag>` too."""


@attrs.frozen
class RLSettings:
    """How groups are played and trained; the pace is the `Schedule`'s."""

    rollout: RolloutSettings = attrs.field(factory=RolloutSettings)
    loss: LossChoice | None = None
    """The loss, by name and parameters, or a function of your own (`engine.training.custom`). None: importance_sampling where every group is on-policy
    (max_staleness 0), ppo where some are not."""
    extra_losses: Sequence[LossChoice] = ()
    """Losses that are added, each a pass of its own: a KL as a loss, say, `Loss("kl_k2", {"coef": 0.01})`."""
    advantages: str | AdvantageFn = "centred"
    """How rewards become advantages: by name (`engine.training.advantages.ADVANTAGES`), or a function of your own."""
    kl: Sequence[KLPenalty] = ()
    """KL to other policies in the reward, each scored ahead of the trainer as soon as a group is played."""
    correction: str | Correction | None = None
    """Off-policy weights for the gap between the policy that sampled and a proximal one: `tis`, `mis:low=0.4`, `geometric_rejection+tis:cap=3`
    (`engine.training.corrections`), or a function of your own."""
    proximal: Literal["forward", "newest"] = "forward"
    """Whose logprobs the proximal policy's are: the trainer's own at the start of the step, from one forward pass more, or those of the version that was
    newest when the group was played, scored ahead."""
    normalization: Normalization = "sum"
    """Whether the loss is a sum over tokens or a mean, by the whole step's counts; any mean awaits the whole step."""
    normalization_constant: float = 0.0
    """What `constant` divides by, times the sequences: the most tokens of a completion, say."""
    transforms: Sequence[TransformFn] = ()
    """Functions of your own on the datums, before normalisation (`engine.training.transforms`)."""
    train_turn: TurnFilter | None = None
    """Turns for which this is false stay in the context and are not trained, such as answers that could not be parsed."""
    optimizer: AdamParams = attrs.field(factory=AdamParams)
    learning_rate: Callable[[int], float] | None = None
    """Factor on the optimizer's learning rate by step; None: 1."""
    sampler: SamplerSettings = attrs.field(factory=SamplerSettings)
    scoring_concurrency: int = attrs.field(default=CONCURRENCY, validator=attrs.validators.ge(1))
    """Sequences being scored for other policies at once."""
    epochs: int | None = attrs.field(default=None, validator=_at_least_one)
    """How often the dataset is walked at most; None: as often as the steps need."""
    shuffle: bool = True
    """Each epoch in its own order, drawn from the seed."""
    drop_constant_groups: bool | None = None
    """Replace groups whose members all have the same reward. None: yes, since they teach nothing, but for runs with a KL that is not centred, where they
    do."""
    constant_limit: int | None = attrs.field(default=None, validator=_at_least_one)
    """Groups in a row with constant rewards that end the run, since nothing is left to learn; None: 256, or 8 times what may be under way."""
    failure_limit: int | None = attrs.field(default=None, validator=_at_least_one)
    """Groups in a row that fail (after what the failure policy allows) before the run does; None: 8, or half of what may be under way."""
    samples_per_step: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    """Groups a step whose questions and answers are kept in samples.jsonl."""
    seed: int = 0

    @property
    def drops_constant_groups(self) -> bool:
        """Whether groups with constant rewards are replaced."""
        if self.drop_constant_groups is not None:
            return self.drop_constant_groups
        return all(penalty.centre for penalty in self.kl)


@attrs.frozen
class Shaping:
    """What is done to a step's datums, and who has to score them for that."""

    transforms: tuple[Transform, ...]
    """What is done to the datums, in this order."""
    sources: tuple[ScoreSource, ...]
    """Scores that are asked for ahead of the trainer."""
    forward_proximal: bool
    """Whether the proximal policy's scores come from the trainer."""

    @property
    def needs_reference(self) -> bool:
        """Whether somebody has to hold the run's reference policy."""
        return any(source.scorer == INITIAL for source in self.sources)


def resolve_shaping(settings: RLSettings, loss_reads: Collection[str]) -> Shaping:
    """What follows from the settings, and from what the loss reads of a datum.

    Raises ValueError for names that do not exist, and for two KL penalties that report under one name.
    """
    if len({penalty.metric for penalty in settings.kl}) < len(settings.kl):
        raise ValueError("two KL penalties report under one name: give each a 'metric' of its own")
    sources: dict[str, ScoreSource] = {}
    transforms = [_kl_in_reward(penalty, sources) for penalty in settings.kl]
    if settings.correction is not None:
        transforms.append(correction(PROXIMAL, resolve_correction(settings.correction)))
    if "proximal_logprobs" in loss_reads:
        transforms.append(attached(PROXIMAL, "proximal_logprobs"))
    if "reference_logprobs" in loss_reads:
        transforms.append(attached(INITIAL, "reference_logprobs"))
    transforms += [resolve_transform(transform) for transform in settings.transforms]
    if settings.normalization != "sum":
        transforms.append(normalization(settings.normalization, settings.normalization_constant))
    read = {name for transform in transforms for name in transform.reads}
    if INITIAL in read:
        sources.setdefault(INITIAL, ScoreSource(INITIAL, INITIAL))
    if NEWEST in read:
        sources.setdefault(NEWEST, ScoreSource(NEWEST, NEWEST))
    if PROXIMAL in read and settings.proximal == "newest":
        sources[PROXIMAL] = ScoreSource(PROXIMAL, NEWEST)
    if unknown := sorted(read - sources.keys() - {PROXIMAL}):
        known = ", ".join(sorted({INITIAL, NEWEST, PROXIMAL, *sources}))
        raise ValueError(f"a transform reads scores called {unknown[0]!r}, which nobody gives; there are {known}")
    return Shaping(tuple(transforms), tuple(sources.values()), PROXIMAL in read and settings.proximal == "forward")


def _kl_in_reward(penalty: KLPenalty, sources: dict[str, ScoreSource]) -> Transform:
    """The penalty's transform; its scores join `sources`."""
    name = penalty.metric
    if isinstance(penalty.to, str):
        if penalty.to not in (INITIAL, NEWEST):
            raise ValueError(f"a KL penalty is to 'initial', 'newest' or a scorer of your own, not {penalty.to!r}")
        name = f"{penalty.to}, privileged" if penalty.privileged else penalty.to
    sources[name] = ScoreSource(name, penalty.to, penalty.privileged)
    return kl_in_reward(
        name,
        penalty.coef,
        kind=penalty.kind,
        discount=penalty.discount,
        centre=penalty.centre,
        metric=penalty.metric,
        tags=tuple(penalty.to.scorers) if isinstance(penalty.to, ScorersByTag) else (),
    )
