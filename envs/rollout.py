"""The one rollout loop: play a group's episodes against a policy, within limits, under a failure policy.

A group is atomic: its members are played concurrently, siblings of a failed member finish or are cancelled *before* the group's `cleanup` runs, and
`cleanup` runs exactly once for every `make_envs`, whatever happened. Nothing is left running when a call returns or raises.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import anyio
import anyio.lowlevel
import attrs

from engine.runtime.seeds import derive_seed
from engine.training.trajectories import Trajectory, TrajectoryGroup
from envs.budgets import BudgetOverrun, Tally, within
from envs.contracts import Env, GroupBuilder, GroupGrade, Policy
from envs.episodes import Players, Ties
from envs.rollout_settings import FailFast, FailurePolicy, MinViable, Retry, RolloutLimits, RolloutSettings
from envs.together import Runner, or_error, quickly, single, together

__all__ = [
    "BudgetOverrun",
    "FailFast",
    "FailurePolicy",
    "GroupFailed",
    "MinViable",
    "Retry",
    "RolloutLimits",
    "RolloutSettings",
    "is_constant",
    "play",
    "play_group",
]


class GroupFailed(Exception):
    """The group's failure policy gave it up. The cause is the last member's error."""

    metrics: Mapping[str, float] = {}
    """As those of a `TrajectoryGroup`: retries, budgets that ran out."""


async def play_group(
    builder: GroupBuilder, policy: Policy, settings: RolloutSettings, seed: int, priority: float = 0.0
) -> TrajectoryGroup:
    """Plays one group. `priority` goes with its sampling requests: lower is served first.

    Raises GroupFailed where the failure policy gives the group up, the member's own error under FailFast.
    """
    failure = settings.failure
    attempts = 1 + (failure.retries if isinstance(failure, Retry) else 0)
    tally = Tally()
    for attempt in range(attempts):
        attempt_seed = seed if attempt == 0 else derive_seed(seed, -attempt)
        if attempt:
            await anyio.lowlevel.checkpoint()  # what failed because it was cancelled is not tried again
        try:
            ties = Ties() if builder.interdependent else None
            players = Players(policy, settings, priority, attempt_seed, tally, ties)
            return await _play_once(builder, players)
        except Exception as error:
            if isinstance(failure, FailFast):
                error.add_note(f"in group {_title(builder)}")
                raise
            tally.failed(error)
            if attempt == attempts - 1:
                raise _given_up(builder, attempts, error, tally) from single(error)
            tally.retries += 1
        except BaseExceptionGroup as errors:
            if isinstance(failure, FailFast):
                raise
            raise _cancellation_alone(errors) from None
    raise AssertionError("unreachable: the last attempt returns or raises")


async def play(env: Env, policy: Policy, settings: RolloutSettings, seed: int, priority: float = 0.0) -> Trajectory:
    """Plays one episode to its end or to a limit.

    Raises BudgetOverrun (a TimeoutError) when the wall clock runs out before the first answer was graded: there is nothing to learn from such an episode.
    """
    return await Players(policy, settings, priority, seed).play(env, seed)


async def _play_once(builder: GroupBuilder, players: Players) -> TrajectoryGroup:
    limits, tally = players.settings.limits, players.tally
    try:
        with within(limits.provision, "provision", f"make_envs of group {_title(builder)}"):
            envs = await builder.make_envs()
        if not envs:
            raise ValueError(f"make_envs of group {_title(builder)} gave no envs; a group has at least one member")
        trajectories = await _play_members(builder, envs, players)
        with within(limits.grading, "grading", f"group_rewards of group {_title(builder)}"):
            extra = await builder.group_rewards(trajectories)
        if extra is not None:
            trajectories = _with_grade(
                builder, trajectories, extra if isinstance(extra, GroupGrade) else GroupGrade(extra)
            )
        _check_played(builder, trajectories)
    finally:
        await _cleanup(builder, players.settings, tally)
    return TrajectoryGroup(tuple(trajectories), tuple(builder.tags), tally.metrics())


def _with_grade(builder: GroupBuilder, trajectories: Sequence[Trajectory], grade: GroupGrade) -> list[Trajectory]:
    for what, given in (("rewards", grade.rewards), ("metrics", grade.metrics)):
        if len(given) != len(trajectories) and (what == "rewards" or len(given)):
            raise ValueError(
                f"group_rewards of group {_title(builder)} gave {len(given)} {what} for {len(trajectories)} members"
            )
    return [
        attrs.evolve(
            trajectory,
            final_reward=trajectory.final_reward + float(reward),
            metrics={**trajectory.metrics, **metrics} if metrics else trajectory.metrics,
        )
        for trajectory, reward, metrics in zip(
            trajectories, grade.rewards, grade.metrics or [{}] * len(trajectories), strict=True
        )
    ]


def _check_played(builder: GroupBuilder, trajectories: Sequence[Trajectory]) -> None:
    if not any(trajectory.turns for trajectory in trajectories):
        raise ValueError(f"no member of group {_title(builder)} was asked anything: there is nothing to learn from it")
    for member, trajectory in enumerate(trajectories):
        if not math.isfinite(trajectory.reward):
            raise ValueError(
                f"member {member} of group {_title(builder)} has the reward {trajectory.reward}: rewards must be finite numbers"
            )


async def _cleanup(builder: GroupBuilder, settings: RolloutSettings, tally: Tally) -> None:
    if type(builder).cleanup is GroupBuilder.cleanup:
        return
    seconds = settings.limits.teardown
    with anyio.CancelScope(shield=True), anyio.move_on_after(seconds) as scope:
        await builder.cleanup()
    if scope.cancelled_caught:
        overrun = BudgetOverrun("teardown", f"cleanup of group {_title(builder)}", seconds)
        if isinstance(settings.failure, FailFast):
            raise overrun
        # What was played is still worth training on; what was not freed is told and counted.
        tally.overrun("teardown")
        warnings.warn(f"{overrun}: what it holds may be left behind", ResourceWarning, stacklevel=2)


async def _play_members(builder: GroupBuilder, envs: Sequence[Env], players: Players) -> list[Trajectory]:
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
    for error in errors:
        players.tally.failed(error)
    if len(survivors) < failure.members:
        cause = single(errors[0])
        raise GroupFailed(
            f"{len(survivors)} of {len(envs)} members survived, {failure.members} are needed; one failed with {type(cause).__name__}: {cause}"
        ) from cause
    return survivors


def is_constant(group: TrajectoryGroup) -> bool:
    """Whether all members have the same return, so that centred advantages are zero. A group of one is not called constant."""
    first, *others = group.trajectories
    return bool(others) and all(other.reward == first.reward for other in others)


def _given_up(builder: GroupBuilder, attempts: int, error: Exception, tally: Tally) -> GroupFailed:
    cause = single(error)
    failed = GroupFailed(
        f"group {_title(builder)} given up after {attempts} attempt(s): {type(cause).__name__}: {cause}"
    )
    failed.metrics = tally.metrics()
    return failed


def _cancellation_alone(errors: BaseExceptionGroup) -> BaseException:
    """The cancellation alone, of a group that was cancelled while members failed: their failures would only have led to another attempt."""
    cancelled, others = errors.split(anyio.get_cancelled_exc_class())
    return cancelled if cancelled is not None and (others is None or isinstance(others, Exception)) else errors


def _title(builder: GroupBuilder) -> str:
    return f"{type(builder).__name__}{list(builder.tags)}" if builder.tags else type(builder).__name__
