"""Promises about how groups end: by themselves, by limits, by failures, by cancellation. Nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from envs.conformance.holdings import Holdings, nothing_beyond, private_temporary_directory
from envs.conformance.playing import Stage, mixed, opened
from envs.conformance.subject import Check, NotConforming, Subject, require
from envs.conformance.watching import Answering, BrokenOnPurpose, Watch


@asynccontextmanager
async def _watched(subject: Subject) -> AsyncIterator[Stage]:
    """Opened, played once (so that what is made once and kept is there), and nothing left when it is closed."""
    with private_temporary_directory():
        async with opened(subject):
            pass  # libraries keep what their first use opens
        before = Holdings.now()
        async with opened(subject) as stage:
            await stage.play(subject.problems[0], mixed(subject))
            yield stage
        await nothing_beyond(before, "when everything was closed", subject.patience)


async def played_groups_leave_nothing(subject: Subject) -> None:
    """When groups are played, `cleanup` has freed what `make_envs` and the steps took: tasks, threads, processes, open and temporary files."""
    async with _watched(subject) as stage:
        before = Holdings.now()
        for problem in subject.problems:
            for seed in range(3):
                await stage.play(problem, mixed(subject), seed=seed)
        await nothing_beyond(before, "after groups that were played to their end", subject.patience)


async def unplayed_groups_leave_nothing(subject: Subject) -> None:
    """`cleanup` frees everything also when no env was reset, and when `make_envs` was never called or was cancelled."""
    async with _watched(subject) as stage:
        before = Holdings.now()
        for problem in subject.problems:
            builder = stage.problems[problem]
            await builder.make_envs()
            await builder.cleanup()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await builder.make_envs()
            await builder.cleanup()
            await stage.problems[problem].cleanup()
        await nothing_beyond(before, "after groups that were made and not played", subject.patience)


async def cancelled_groups_leave_nothing(subject: Subject) -> None:
    """A group that is cancelled at any of its waits ends at once, is cleaned up once for each `make_envs`, and leaves nothing; the next one is played as ever."""
    problem = subject.problems[0]
    async with _watched(subject) as stage:
        before = Holdings.now()
        whole, watch = await stage.play(problem, mixed(subject), seed=1)
        moments = watch.moments
        stride = max(1, moments // subject.cancellations)
        for strike in range(1, moments + 1, stride):
            watch = Watch(strike=strike)
            with anyio.CancelScope() as scope:
                watch.scope = scope
                await stage.play(problem, mixed(subject), seed=1, watch=watch)
            when = f"when cancelled at wait {strike} of {moments}"
            require(watch.cleaned == watch.made, f"{watch.made} make_envs, {watch.cleaned} cleanups {when}")
            await nothing_beyond(before, when, subject.patience)
        again, _ = await stage.play(problem, mixed(subject), seed=1)
        require(
            again.rewards_G.tolist() == whole.rewards_G.tolist(), "after the cancellations the group goes otherwise"
        )


async def failing_members_leave_nothing(subject: Subject) -> None:
    """When a member's step or a request for its answer fails, the group ends (nobody waits for the lost one for ever), is cleaned up and leaves nothing."""
    problem = subject.problems[0]
    async with _watched(subject) as stage:
        before = Holdings.now()
        policy = Answering(mixed(subject))
        _, watch = await stage.play(problem, mixed(subject), seed=1, policy=policy)
        for step in _a_few(watch.steps):
            watch = Watch(fail_step=step)
            await _failing(stage, problem, watch, Answering(mixed(subject), watch))
            await nothing_beyond(before, f"when step {step} failed", subject.patience)
        for request in _a_few(policy.requests):
            watch = Watch()
            await _failing(stage, problem, watch, Answering(mixed(subject), watch, fail_at=request))
            await nothing_beyond(before, f"when request {request} failed", subject.patience)


async def _failing(stage: Stage, problem: int, watch: Watch, policy: Answering) -> None:
    try:
        await stage.play(problem, (), seed=1, watch=watch, policy=policy)
    except BrokenOnPurpose:
        pass
    except BaseExceptionGroup as errors:
        require(errors.split(BrokenOnPurpose)[0] is not None, f"a member's failure was not told, but {errors!r}")
    else:
        require(False, "a member's failure was swallowed")
    require(watch.cleaned == watch.made, f"{watch.made} make_envs, {watch.cleaned} cleanups")


def _a_few(count: int, most: int = 5) -> range:
    return range(1, count + 1, max(1, count // most))


async def limits_end_groups(subject: Subject) -> None:
    """Where a limit ends members before the env does, the group still ends: with rewards, or, where members wait for one another, told as a failure; never by
    waiting for ever."""
    limits: tuple[dict[str, Any], ...] = ({"max_turns": 1}, {"max_tokens": 1}, {"max_turns": 2, "max_tokens": 40})
    async with _watched(subject) as stage:
        before = Holdings.now()
        for limit in limits:
            for problem in subject.problems:
                watch = Watch()
                try:
                    await stage.play(problem, mixed(subject), seed=2, watch=watch, **limit)
                except NotConforming:
                    raise
                except Exception:
                    if not stage.problems[problem].interdependent:
                        raise
                require(watch.cleaned == watch.made, f"{watch.made} make_envs, {watch.cleaned} cleanups")
        await nothing_beyond(before, "after groups that limits ended", subject.patience)


CHECKS: tuple[Check, ...] = (
    played_groups_leave_nothing,
    unplayed_groups_leave_nothing,
    cancelled_groups_leave_nothing,
    failing_members_leave_nothing,
    limits_end_groups,
)
