"""The contracts an environment keeps.

An `Env` is one episode and is used once. A `GroupBuilder` makes the envs of one problem, may compare their outcomes, and cleans up
after the last of them. Both may be plain classes: nothing is registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from engine.backends.values import Completion, ModelInput, SampleRequest
from engine.training.trajectories import EndReason, Trajectory, TrajectoryGroup


@attrs.frozen
class Observation:
    """What the policy is asked."""

    prompt: ModelInput
    """The whole context, earlier turns and their sampled tokens included."""
    stop: tuple[str | int, ...] = ()
    """Stop strings and stop token ids that end the answer."""
    max_tokens: int | None = None
    """Most tokens this answer may take; None: the rollout's own limit."""
    teacher_prompt: ModelInput | None = None
    """What a teacher reads in the prompt's place when it scores the answer: the same question with hints, the solution, a longer prompt. None: the
    prompt itself."""


@attrs.frozen
class Step:
    """What an answer led to."""

    reward: float = 0.0
    observation: Observation | None = None
    """The next question; None: the episode is over."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    logs: Mapping[str, Any] = attrs.field(factory=dict)
    """For people: JSON values shown in samples and reports."""


@attrs.frozen
class GroupGrade:
    """What comparing a group's members gave, with figures to report: a reward and metrics for each member."""

    rewards: Sequence[float]
    metrics: Sequence[Mapping[str, float]] = ()
    """A mapping for each member, in their order; empty: none."""


class Env(Protocol):
    """One episode.

    An env may also have `leave(end) -> float` (see `Leaving`), where others depend on it.
    """

    async def reset(self) -> Observation | None:
        """The first observation. Called once. None: the episode is over before it began, because another player ended the game."""
        ...

    async def step(self, completion: Completion) -> Step:
        """Takes the policy's answer to the last observation."""
        ...


class Leaving(Protocol):
    """An env that has to know when its episode ends otherwise than by its own `Step`."""

    def leave(self, end: EndReason | None) -> float:
        """Called once, when nothing more will be asked of the env: `end` is the limit that ended the episode, "done" where `reset` gave no observation, None a
        failure or a cancellation. Not called where a `Step` ended the episode.

        Gives what is added to the episode's reward. Must neither wait nor raise: others may be waiting for this one.
        """
        ...


class GroupBuilder:
    """Makes the envs of one problem. Override what you need; `make_envs` you must.

    `tags` name the kind of problem in metrics. `single_turn` promises that every env ends at its first step: members that then share a
    prompt are asked for in one sampling request. `interdependent` says that members wait for one another (players of one
    game), so that one that fails takes the others with it whatever the failure policy, and a limit that ends one ends them all (`group_limit`;
    `group_rewards` sees who ended how), unless the envs settle that among themselves (`Leaving`).
    """

    tags: tuple[str, ...] = ()
    single_turn: bool = False
    interdependent: bool = False

    async def make_envs(self) -> Sequence[Env]:
        """The members of the group, at least one."""
        raise NotImplementedError(f"{type(self).__name__} must define make_envs()")

    async def group_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[float] | GroupGrade | None:  # noqa: ARG002
        """A reward for each member from comparing all of them, added to their own; None: nothing to add. A `GroupGrade` adds metrics to the episodes too."""
        return None

    async def cleanup(self) -> None:
        """Frees what `make_envs` took. Called once for each call of `make_envs`, after the last member has finished, however it finished."""


class Policy(Protocol):
    """Whoever answers observations."""

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions."""
        ...


class GroupDataset(Protocol):
    """Problems by position; anything with `__getitem__` and `__len__`, a list too. The same position gives the same problem, so that a
    resumed run can go on where the last one stood."""

    def __getitem__(self, index: int, /) -> GroupBuilder: ...

    def __len__(self) -> int: ...


@runtime_checkable
class AdaptiveGroups(Protocol):
    """What a `GroupDataset` is besides when its problems follow what was played: a curriculum.

    The rule of the same problem at the same position holds for every position that was asked for once; how further ones come out may change. Its state goes
    into every checkpoint, cut at the same moment as all the rest, so that a resumed run goes on with the curriculum, and plays groups that were under way again.
    """

    def observe(self, index: int, group: TrajectoryGroup) -> None:
        """A group of problem `index` was played to its end, and is or is not trained. Called once for each."""
        ...

    def state(self) -> Mapping[str, Any]:
        """JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes a state back. Raises ValueError for one that does not fit."""
        ...
