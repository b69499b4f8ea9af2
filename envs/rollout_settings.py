"""How groups are played: limits of an episode, time budgets, and what a failed member does to its group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from engine.backends.values import SamplingParams
from engine.training.trajectories import EndReason

_optional_positive = attrs.validators.optional(attrs.validators.gt(0))


@attrs.frozen
class RolloutLimits:
    """What one episode may take. None: no limit.

    Every phase has a time budget of its own (`provision`, `turn`, `grading`, `teardown`); those that ran out are counted in the metrics
    `timeouts/<phase>`. Sampling is in none of them: its deadline is the sampler's.
    """

    max_turns: int | None = attrs.field(default=None, validator=_optional_positive)
    """Most turns of an episode."""
    max_tokens: int | None = attrs.field(default=None, validator=_optional_positive)
    """Most sampled tokens of an episode, over all its turns."""
    max_context: int | None = attrs.field(default=None, validator=_optional_positive)
    """Longest prompt and completion together, in tokens."""
    wall_clock: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds of an episode, from its reset on, sampling included."""
    provision: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds for `make_envs`, and again for each `reset` (but for those of interdependent members, who may wait for another's move there); running out
    counts as a failure."""
    turn: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds for the env's side of a turn, `step`: tools, opponents, and what it grades itself."""
    turn_overrun: Literal["end", "fail"] = attrs.field(default="end", validator=attrs.validators.in_(("end", "fail")))
    """What an answer does whose turn took longer. end: it ends the episode, and earns nothing but the termination reward of turn_limit. fail: it is a failure, as
    it always is among interdependent members."""
    grading: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds for `group_rewards`; running out counts as a failure."""
    teardown: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    """Most seconds for `cleanup`, also when the run is being cancelled. Running out does not undo a group that was played, unless failures end the run; it
    gives a ResourceWarning, since something may be left behind."""


@attrs.frozen
class FailFast:
    """A failed member fails the run."""


@attrs.frozen
class Retry:
    """A failed member fails its group, which is played again from new envs; given up after `retries` retries."""

    retries: int = attrs.field(default=2, validator=attrs.validators.ge(1))


@attrs.frozen
class MinViable:
    """The members that did not fail make the group, if they are at least `members`; otherwise it is given up.

    A group of interdependent members cannot lose one: there, any failure gives the group up.
    """

    members: int = attrs.field(default=2, validator=attrs.validators.ge(1))


FailurePolicy = FailFast | Retry | MinViable


@attrs.frozen
class RolloutSettings:
    """How groups are played."""

    sampling: SamplingParams = attrs.field(factory=SamplingParams)
    """Temperature and the like; `max_tokens` is that of one answer."""
    limits: RolloutLimits = attrs.field(factory=RolloutLimits)
    """Limits of one episode."""
    failure: FailurePolicy = attrs.field(factory=Retry)
    """What a failed member does to its group and to the run."""
    termination_rewards: Mapping[EndReason, float] = attrs.field(factory=dict)
    """Added to the reward of an episode that ended for this reason, e.g. {"max_tokens": -0.5}."""

    def within_context(self, longest: int | None) -> RolloutSettings:
        """The same, with `limits.max_context` at most `longest`, the model's own; None: unknown."""
        limit = self.limits.max_context
        if longest is None or (limit is not None and limit <= longest):
            return self
        return attrs.evolve(self, limits=attrs.evolve(self.limits, max_context=longest))
