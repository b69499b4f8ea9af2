"""The one rollout loop: play a group's episodes against a policy, within limits, under a failure policy.

A group is atomic: its members are played concurrently, siblings of a failed member finish or are cancelled *before* the group's `cleanup` runs, and
`cleanup` runs exactly once for every `make_envs`, whatever happened. Nothing is left running when a call returns or raises.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import anyio.lowlevel
import attrs

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.runtime.seeds import derive_seed
from engine.training.trajectories import EndReason, Trajectory, TrajectoryGroup, Turn
from envs.contracts import Env, GroupBuilder, Observation, Policy, Step
from envs.together import Runner, or_error, quickly, single, together, within


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
    grading: float | None = attrs.field(default=None, validator=_optional_positive)
    """Most seconds for `group_rewards`; running out counts as a failure."""
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


async def play_group(
    builder: GroupBuilder, policy: Policy, settings: RolloutSettings, seed: int, priority: float = 0.0
) -> TrajectoryGroup:
    """Plays one group. `priority` goes with its sampling requests: lower is served first.

    Raises GroupFailed where the failure policy gives the group up, the member's own error under FailFast.
    """
    failure = settings.failure
    attempts = 1 + (failure.retries if isinstance(failure, Retry) else 0)
    for attempt in range(attempts):
        attempt_seed = seed if attempt == 0 else derive_seed(seed, -attempt)
        if attempt:
            await anyio.lowlevel.checkpoint()  # what failed because it was cancelled is not tried again
        try:
            return await _play_once(builder, _Players(policy, settings, priority, attempt_seed))
        except Exception as error:
            if isinstance(failure, FailFast):
                error.add_note(f"in group {_title(builder)}")
                raise
            if attempt == attempts - 1:
                cause = single(error)
                raise GroupFailed(
                    f"group {_title(builder)} given up after {attempts} attempt(s): {type(cause).__name__}: {cause}"
                ) from cause
        except BaseExceptionGroup as errors:
            if isinstance(failure, FailFast):
                raise
            raise _cancellation_alone(errors) from None
    raise AssertionError("unreachable: the last attempt returns or raises")


async def play(env: Env, policy: Policy, settings: RolloutSettings, seed: int, priority: float = 0.0) -> Trajectory:
    """Plays one episode to its end or to a limit.

    Raises TimeoutError when the wall clock runs out before the first answer was graded: there is nothing to learn from such an episode.
    """
    return await _Players(policy, settings, priority, seed).play(env, seed)


async def _play_once(builder: GroupBuilder, players: _Players) -> TrajectoryGroup:
    limits = players.settings.limits
    try:
        if limits.provision is None:
            envs = await builder.make_envs()
        else:
            with within(limits.provision, f"make_envs of group {_title(builder)}"):
                envs = await builder.make_envs()
        if not envs:
            raise ValueError(f"make_envs of group {_title(builder)} gave no envs; a group has at least one member")
        trajectories = await _play_members(builder, envs, players)
        if limits.grading is None:
            extra = await builder.group_rewards(trajectories)
        else:
            with within(limits.grading, f"group_rewards of group {_title(builder)}"):
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
    if type(builder).cleanup is GroupBuilder.cleanup:
        return
    with anyio.CancelScope(shield=True), anyio.move_on_after(seconds) as scope:
        await builder.cleanup()
    if scope.cancelled_caught:
        raise TimeoutError(f"cleanup of group {_title(builder)} did not finish within {seconds:g} s")


async def _play_members(builder: GroupBuilder, envs: Sequence[Env], players: _Players) -> list[Trajectory]:
    failure = players.settings.failure
    may_lose = isinstance(failure, MinViable) and not builder.interdependent
    # Members that wait for one another must all be under way.
    run: Runner = quickly if builder.single_turn and not builder.interdependent else together
    if builder.single_turn and len(envs) > 1:
        members = await players.for_shared_prompt(envs, run, may_lose)
    else:
        members = [players.player(env, member) for member, env in enumerate(envs)]
    if not isinstance(failure, MinViable) or builder.interdependent:
        return await run(members)

    outcomes = await run([or_error(member) for member in members])
    survivors = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if len(survivors) < failure.members:
        cause = single(errors[0])
        raise GroupFailed(
            f"{len(survivors)} of {len(envs)} members survived, {failure.members} are needed; one failed with {type(cause).__name__}: {cause}"
        ) from cause
    return survivors


@attrs.frozen
class _Players:
    """How the members of one group are played, in one attempt."""

    policy: Policy
    settings: RolloutSettings
    priority: float
    seed: int

    def player(
        self, env: Env, member: int, observation: Observation | None = None, began: float | None = None
    ) -> Callable[[], Awaitable[Trajectory]]:
        """Plays one member, from its reset or from an observation it has given already, in an episode that `began` then."""
        return lambda: self.play(env, derive_seed(self.seed, member), observation, began)

    async def for_shared_prompt(
        self, envs: Sequence[Env], run: Runner, may_lose: bool
    ) -> list[Callable[[], Awaitable[Trajectory]]]:
        """One sampling request for all members of a single-turn group that see the same prompt; their own ones where they do not.

        `may_lose`: a member whose reset fails is one that fails when it is played; otherwise its error is the group's.
        """
        wall_clock = self.settings.limits.wall_clock
        if wall_clock is None:
            return await self._for_shared_prompt(envs, run, may_lose, 0.0)
        began = anyio.current_time()
        with within(wall_clock, f"{type(envs[0]).__name__}: the first answer"):
            return await self._for_shared_prompt(envs, run, may_lose, began)

    async def _for_shared_prompt(
        self, envs: Sequence[Env], run: Runner, may_lose: bool, began: float
    ) -> list[Callable[[], Awaitable[Trajectory]]]:
        resets = [or_error(env.reset) for env in envs] if may_lose else [env.reset for env in envs]
        observations: list[Observation | Exception] = await run(resets)
        live = [observation for observation in observations if not isinstance(observation, Exception)]
        if not live:
            return [_failing(error) for error in observations if isinstance(error, Exception)]
        first = live[0]
        if any(observation is not first and observation != first for observation in live):
            return [
                _failing(observation)
                if isinstance(observation, Exception)
                else self.player(env, member, observation, began)
                for member, (env, observation) in enumerate(zip(envs, observations, strict=True))
            ]
        params = self.params(first, self.settings.limits.max_tokens)
        if params is None:
            raise ValueError(_too_long(first, self.settings.limits))
        request = SampleRequest(first.prompt, params, self.seed, len(live), self.priority)
        completions = iter(await self.policy.sample(request))
        return [
            _failing(observation)
            if isinstance(observation, Exception)
            else functools.partial(self._answer_once, env, first, next(completions), began)
            for env, observation in zip(envs, observations, strict=True)
        ]

    async def _answer_once(
        self, env: Env, observation: Observation, completion: Completion, began: float
    ) -> Trajectory:
        wall_clock = self.settings.limits.wall_clock
        if wall_clock is None:
            step = await env.step(completion)
        else:
            with within(wall_clock, f"{type(env).__name__}: the only turn", began):
                step = await env.step(completion)
        if step.observation is not None:
            raise ValueError(
                f"{type(env).__name__} is in a group declared single_turn, but went on after its first step"
            )
        return Trajectory(
            (_turn(observation, completion, step),), "done", self.settings.termination_rewards.get("done", 0.0)
        )

    async def play(
        self, env: Env, seed: int, observation: Observation | None = None, began: float | None = None
    ) -> Trajectory:
        """One episode, which `began` now unless its reset is behind it."""
        turns: list[Turn] = []
        wall_clock = self.settings.limits.wall_clock
        if wall_clock is None:
            end = await self._play_turns(env, seed, observation, turns)
        else:
            end = "time_limit"
            with anyio.CancelScope(deadline=(anyio.current_time() if began is None else began) + wall_clock):
                end = await self._play_turns(env, seed, observation, turns)
            if not turns:
                raise TimeoutError(
                    f"{type(env).__name__}: no turn was finished within the wall clock of {wall_clock:g} s"
                )
        return Trajectory(tuple(turns), end, self.settings.termination_rewards.get(end, 0.0))

    async def _play_turns(self, env: Env, seed: int, observation: Observation | None, turns: list[Turn]) -> EndReason:
        limits = self.settings.limits
        if observation is None:
            observation = await env.reset()
        tokens_left = limits.max_tokens
        while True:
            params = self.params(observation, tokens_left)
            if params is None:
                if not turns:
                    raise ValueError(_too_long(observation, limits))
                return "context"
            request = SampleRequest(observation.prompt, params, derive_seed(seed, len(turns)), 1, self.priority)
            (completion,) = await self.policy.sample(request)
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

    def params(self, observation: Observation, tokens_left: int | None) -> SamplingParams | None:
        """The sampling parameters of one answer; None when the context has no room for a single token."""
        params = self.settings.sampling
        max_tokens = params.max_tokens
        if observation.max_tokens is not None:
            max_tokens = min(max_tokens, observation.max_tokens)
        if tokens_left is not None:
            max_tokens = min(max_tokens, tokens_left)
        if self.settings.limits.max_context is not None:
            max_tokens = min(max_tokens, self.settings.limits.max_context - observation.prompt.length)
        if max_tokens < 1:
            return None
        stop = observation.stop or params.stop
        if max_tokens == params.max_tokens and stop is params.stop:
            return params
        return SamplingParams(max_tokens, params.temperature, params.top_p, params.top_k, stop)


def _turn(observation: Observation, completion: Completion, step: Step) -> Turn:
    return Turn(observation.prompt, completion, float(step.reward), step.metrics, step.logs)


def _too_long(observation: Observation, limits: RolloutLimits) -> str:
    return f"the first prompt has {observation.prompt.length} tokens: limits.max_context {limits.max_context} leaves no room for an answer"


def is_constant(group: TrajectoryGroup) -> bool:
    """Whether all members have the same return, so that centred advantages are zero. A group of one is not called constant."""
    first, *others = group.trajectories
    return bool(others) and all(other.reward == first.reward for other in others)


def _failing(error: Exception) -> Callable[[], Awaitable[Trajectory]]:
    async def fail() -> Trajectory:
        raise error

    return fail


def _cancellation_alone(errors: BaseExceptionGroup) -> BaseException:
    """Of a group cancelled while members failed: the cancellation. Who would have been played again need not be heard of."""
    cancelled, others = errors.split(anyio.get_cancelled_exc_class())
    return cancelled if cancelled is not None and (others is None or isinstance(others, Exception)) else errors


def _title(builder: GroupBuilder) -> str:
    return f"{type(builder).__name__}{list(builder.tags)}" if builder.tags else type(builder).__name__
