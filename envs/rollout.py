"""The one rollout loop: play a group's episodes against a policy, within limits, under a failure policy.

A group is atomic: its members are played concurrently, siblings of a failed member finish or are cancelled *before* the group's `cleanup` runs, and
`cleanup` runs exactly once for every `make_envs`, whatever happened. Nothing is left running when a call returns or raises.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import anyio
import attrs
import numpy as np

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.runtime.seeds import derive_seed
from engine.training.trajectories import EndReason, Trajectory, TrajectoryGroup, Turn
from envs.contracts import Env, GroupBuilder, Observation, Policy, Step

T = TypeVar("T")


class GroupFailed(Exception):
    """The group's failure policy gave it up. The cause is the last member's error."""


_optional_positive = attrs.validators.optional(attrs.validators.gt(0))


@attrs.frozen
class RolloutLimits:
    """What one episode may take. None: no limit."""

    max_turns: int | None = attrs.field(default=None, validator=_optional_positive)
    """Most turns of an episode."""
    max_tokens: int | None = attrs.field(default=None, validator=_optional_positive)
    """Most sampled tokens of an episode, over all its turns."""
    max_context: int | None = attrs.field(default=None, validator=_optional_positive)
    """Longest prompt and completion together."""
    wall_clock: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds of an episode, from its reset on."""
    provision: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds for `make_envs`; running out counts as a failure."""
    teardown: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    """Most seconds for `cleanup`, also when the run is being cancelled."""


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


async def play_group(builder: GroupBuilder, policy: Policy, settings: RolloutSettings, seed: int) -> TrajectoryGroup:
    """Plays one group. Raises GroupFailed where the failure policy gives the group up, the member's own error under FailFast."""
    failure = settings.failure
    attempts = 1 + (failure.retries if isinstance(failure, Retry) else 0)
    for attempt in range(attempts):
        try:
            return await _play_once(builder, policy, settings, seed if attempt == 0 else derive_seed(seed, -attempt))
        except Exception as error:
            if isinstance(failure, FailFast):
                raise
            if attempt == attempts - 1:
                cause = _single(error)
                raise GroupFailed(
                    f"group {_title(builder)} given up after {attempts} attempt(s): {type(cause).__name__}: {cause}"
                ) from cause
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _play_once(builder: GroupBuilder, policy: Policy, settings: RolloutSettings, seed: int) -> TrajectoryGroup:
    limits = settings.limits
    try:
        if limits.provision is None:
            envs = await builder.make_envs()
        else:
            with anyio.fail_after(limits.provision):
                envs = await builder.make_envs()
        if not envs:
            raise ValueError(f"make_envs of group {_title(builder)} gave no envs; a group has at least one member")
        trajectories = await _play_members(builder, envs, policy, settings, seed)
        extra = await builder.group_rewards(trajectories)
        if extra is not None:
            if len(extra) != len(trajectories):
                raise ValueError(
                    f"group_rewards of group {_title(builder)} gave {len(extra)} rewards for {len(trajectories)} members"
                )
            trajectories = [
                attrs.evolve(trajectory, final_reward=trajectory.final_reward + float(reward))
                for trajectory, reward in zip(trajectories, extra, strict=True)
            ]
        _check_rewards(builder, trajectories)
    finally:
        await _cleanup(builder, limits.teardown)
    return TrajectoryGroup(tuple(trajectories), tuple(builder.tags))


def _check_rewards(builder: GroupBuilder, trajectories: Sequence[Trajectory]) -> None:
    for member, trajectory in enumerate(trajectories):
        if not math.isfinite(trajectory.reward):
            raise ValueError(
                f"member {member} of group {_title(builder)} has the reward {trajectory.reward}: rewards must be finite numbers"
            )


async def _cleanup(builder: GroupBuilder, seconds: float) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(seconds) as scope:
        await builder.cleanup()
    if scope.cancelled_caught:
        raise TimeoutError(f"cleanup of group {_title(builder)} did not finish within {seconds:g} s")


async def _play_members(
    builder: GroupBuilder, envs: Sequence[Env], policy: Policy, settings: RolloutSettings, seed: int
) -> list[Trajectory]:
    survivors_needed = (
        settings.failure.members if isinstance(settings.failure, MinViable) and not builder.interdependent else None
    )
    if builder.single_turn and len(envs) > 1:
        players = await _players_of_shared_prompt(envs, policy, settings, seed)
    else:
        players = None

    def player(member: int) -> Awaitable[Trajectory]:
        if players is not None:
            return players[member]()
        return play(envs[member], policy, settings, derive_seed(seed, member))

    if survivors_needed is None:
        return await _together([lambda member=member: player(member) for member in range(len(envs))])  # type: ignore[misc]

    errors: list[Exception] = []

    async def survivor(member: int) -> Trajectory | None:
        try:
            return await player(member)
        except Exception as error:  # noqa: BLE001  (whatever an env raises, the group may live without this member)
            errors.append(error)
            return None

    played = await _together([lambda member=member: survivor(member) for member in range(len(envs))])  # type: ignore[misc]
    survivors = [trajectory for trajectory in played if trajectory is not None]
    if len(survivors) < survivors_needed:
        raise GroupFailed(
            f"{len(survivors)} of {len(envs)} members survived, {survivors_needed} are needed"
        ) from errors[-1]
    return survivors


async def _players_of_shared_prompt(
    envs: Sequence[Env], policy: Policy, settings: RolloutSettings, seed: int
) -> list[Callable[[], Awaitable[Trajectory]]] | None:
    """One sampling request for all members of a single-turn group that see the same prompt.

    When they do not, each member goes on by itself from the observation it already has.
    """
    observations = await _together([env.reset for env in envs])
    first = observations[0]
    if any(observation is not first and observation != first for observation in observations[1:]):
        return [
            lambda member=member, env=env, observation=observation: play(  # type: ignore[misc]
                env, policy, settings, derive_seed(seed, member), observation
            )
            for member, (env, observation) in enumerate(zip(envs, observations, strict=True))
        ]
    params = _params(settings, first, settings.limits.max_tokens)
    if params is None:
        raise ValueError(_too_long(first, settings.limits))
    completions = await policy.sample(SampleRequest(first.prompt, params, seed, num_samples=len(envs)))
    return [
        lambda env=env, completion=completion: _answer_once(env, first, completion, settings)  # type: ignore[misc]
        for env, completion in zip(envs, completions, strict=True)
    ]


async def _answer_once(
    env: Env, observation: Observation, completion: Completion, settings: RolloutSettings
) -> Trajectory:
    with anyio.fail_after(settings.limits.wall_clock):
        step = await env.step(completion)
    if step.observation is not None:
        raise ValueError(f"{type(env).__name__} is in a group declared single_turn, but went on after its first step")
    return Trajectory((_turn(observation, completion, step),), "done", settings.termination_rewards.get("done", 0.0))


async def play(
    env: Env, policy: Policy, settings: RolloutSettings, seed: int, first: Observation | None = None
) -> Trajectory:
    """Plays one episode to its end or to a limit.

    Raises TimeoutError when the wall clock runs out before the first answer was graded: there is nothing to learn from such an episode.
    """
    turns: list[Turn] = []
    wall_clock = settings.limits.wall_clock
    if wall_clock is None:
        end = await _play_turns(env, policy, settings, seed, first, turns)
    else:
        end = "time_limit"
        with anyio.move_on_after(wall_clock):
            end = await _play_turns(env, policy, settings, seed, first, turns)
        if not turns:
            raise TimeoutError(f"{type(env).__name__}: no turn was finished within the wall clock of {wall_clock:g} s")
    return Trajectory(tuple(turns), end, settings.termination_rewards.get(end, 0.0))


async def _play_turns(
    env: Env, policy: Policy, settings: RolloutSettings, seed: int, observation: Observation | None, turns: list[Turn]
) -> EndReason:
    limits = settings.limits
    if observation is None:
        observation = await env.reset()
    tokens_left = limits.max_tokens
    while True:
        params = _params(settings, observation, tokens_left)
        if params is None:
            if not turns:
                raise ValueError(_too_long(observation, limits))
            return "context"
        (completion,) = await policy.sample(SampleRequest(observation.prompt, params, derive_seed(seed, len(turns))))
        step = await env.step(completion)
        turns.append(_turn(observation, completion, step))
        if step.observation is None:
            return "done"
        observation = step.observation
        if limits.max_turns is not None and len(turns) >= limits.max_turns:
            return "max_turns"
        if tokens_left is not None:
            tokens_left -= len(completion.tokens)
            if tokens_left <= 0:
                return "max_tokens"


def _turn(observation: Observation, completion: Completion, step: Step) -> Turn:
    return Turn(observation.prompt, completion, float(step.reward), step.metrics, step.logs)


def _params(settings: RolloutSettings, observation: Observation, tokens_left: int | None) -> SamplingParams | None:
    """The sampling parameters of one answer; None when the context has no room for a single token."""
    params = settings.sampling
    max_tokens = params.max_tokens
    if observation.max_tokens is not None:
        max_tokens = min(max_tokens, observation.max_tokens)
    if tokens_left is not None:
        max_tokens = min(max_tokens, tokens_left)
    if settings.limits.max_context is not None:
        max_tokens = min(max_tokens, settings.limits.max_context - observation.prompt.length)
    if max_tokens < 1:
        return None
    stop = observation.stop or params.stop
    if max_tokens == params.max_tokens and stop is params.stop:
        return params
    return SamplingParams(max_tokens, params.temperature, params.top_p, params.top_k, stop)


def _too_long(observation: Observation, limits: RolloutLimits) -> str:
    return f"the first prompt has {observation.prompt.length} tokens: limits.max_context {limits.max_context} leaves no room for an answer"


def is_constant(group: TrajectoryGroup) -> bool:
    """Whether all members have the same return, so that centred advantages are zero. A group of one is not called constant."""
    if len(group.trajectories) < 2:
        return False
    rewards_G = group.rewards_G
    return bool(np.all(rewards_G == rewards_G[0]))


async def _together(functions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Runs all at once; the first failure cancels the others and is raised when they have ended, alone if it was alone."""
    if len(functions) == 1:
        return [await functions[0]()]
    results: list[T | None] = [None] * len(functions)

    async def store(index: int) -> None:
        results[index] = await functions[index]()

    try:
        async with anyio.create_task_group() as group:
            for index in range(len(functions)):
                group.start_soon(store, index)
    except ExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        raise
    return results  # type: ignore[return-value]  # every store has run


def _single(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _title(builder: GroupBuilder) -> str:
    return f"{type(builder).__name__}{list(builder.tags)}" if builder.tags else type(builder).__name__
