"""One schedule instead of three loops: how groups are admitted, trained and bounded in staleness."""

from __future__ import annotations

from typing import Literal

import attrs

from engine.runtime.gate import Bound


@attrs.frozen
class Schedule:
    """The pace of a run.

    synchronous: `max_staleness=0, minibatches=1`. Streaming minibatch: `max_staleness=0, minibatches>1`. Asynchronous, bounded off-policy:
    `max_staleness>=1`, any `minibatches`.
    """

    groups_per_step: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Groups trained by one optimizer step."""
    minibatches: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Parts in which a step's groups are submitted; more than one starts training before the last group has finished."""
    max_staleness: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Most optimizer steps between the weights that sampled a group and the step that trains it."""
    bound: Bound = "hard"
    """hard: max_staleness holds for every group. soft: for the mean; a straggler may exceed it."""
    pin: Literal["group", "turn"] = "group"
    """Which weights answer a group's later turns: those of its admission, or the newest."""

    def __attrs_post_init__(self) -> None:
        if self.minibatches > self.groups_per_step:
            raise ValueError(
                f"minibatches ({self.minibatches}) must be at most groups_per_step ({self.groups_per_step}): a minibatch holds at least one group"
            )

    @property
    def mode(self) -> str:
        """sync, streaming or async."""
        if self.max_staleness:
            return "async"
        return "streaming" if self.minibatches > 1 else "sync"

    @property
    def capacity(self) -> int:
        """Most groups admitted and not yet settled; every channel of a run holds as many."""
        return (self.max_staleness + 1) * self.groups_per_step

    def minibatch_sizes(self) -> list[int]:
        """Groups in each minibatch of a full step: as equal as they can be."""
        small, larger = divmod(self.groups_per_step, self.minibatches)
        return [small + 1] * larger + [small] * (self.minibatches - larger)
