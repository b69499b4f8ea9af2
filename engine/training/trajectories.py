"""What a rollout leaves behind: turns, trajectories, groups. The input of advantages and datum assembly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Completion, ModelInput

EndReason = Literal["done", "max_turns", "max_tokens", "time_limit", "turn_limit", "group_limit", "context"]
"""Why an episode ended: by the environment itself, or by one of the rollout's limits (`time_limit`: the episode's wall clock; `turn_limit`:
a turn's budget; `group_limit`: a limit that ended another member of the group, whom this one may have waited for)."""


@attrs.frozen
class Turn:
    """One observation and the completion that answered it.

    The completion's tokens are those that were sampled; nothing downstream renders them again.
    """

    prompt: ModelInput
    completion: Completion
    reward: float = 0.0
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    logs: Mapping[str, Any] = attrs.field(factory=dict)
    """For people: what was asked and answered, JSON values."""
    teacher_prompt: ModelInput | None = None
    """What a teacher reads in the prompt's place when it scores the completion; None: the prompt."""


@attrs.frozen
class Trajectory:
    """One member's episode."""

    turns: tuple[Turn, ...]
    """Empty where the game was over before the member's first turn."""
    end: EndReason = "done"
    final_reward: float = 0.0
    """Reward beside the turns' own: for how the episode ended, and from comparing the group's members."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    reward: float = attrs.field(init=False)
    """Return of the episode, undiscounted: the turns' rewards and the final one."""

    @reward.default
    def _(self) -> float:
        reward = self.final_reward
        for turn in self.turns:
            reward += turn.reward
        return reward

    @property
    def sampled_tokens(self) -> int:
        """Tokens the policy produced, over all turns."""
        return sum(len(turn.completion.tokens) for turn in self.turns)

    @property
    def oldest_version(self) -> int:
        """Oldest policy version that produced any token. Raises ValueError where there was no turn."""
        return min(turn.completion.version for turn in self.turns)


@attrs.frozen
class TrajectoryGroup:
    """The episodes of one problem: what advantages are centred over."""

    trajectories: tuple[Trajectory, ...]
    tags: tuple[str, ...] = ()
    """What the problem is, for metrics by kind: `("arithmetic", "digits_2")`."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    """What happened to the group, counted: `retries`, `timeouts/<phase>`; those that are not 0."""

    @property
    def rewards_G(self) -> NDArray[np.float64]:  # noqa: N802  (array names end in dimension letters)
        """Returns of the members, shape (G,)."""
        return np.array([trajectory.reward for trajectory in self.trajectories], np.float64)

    @property
    def sampled_tokens(self) -> int:
        """Tokens the policy produced, over all members."""
        return sum(trajectory.sampled_tokens for trajectory in self.trajectories)
