"""Rollouts: play each job's group, grade it, clean up, send it on.

    consumes: jobs                        produces: finished groups (played ones, where they are scored next)
    waits for: the sampler, the envs      unblocked by: completions, env steps

Groups under way are bounded by the gate, so each job gets its own task at once, and the channel behind always has room.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs
import numpy as np

from actors.giving_back import GivingBack
from actors.prediction import LengthPredictor
from actors.sampler import FollowingPolicy, Sampler, ServedPolicy
from actors.work import FinishedGroup, Job, Journal, RolloutLedger, UnderWay
from engine.runtime.channels import Receiver, Sender
from engine.runtime.instrumentation import Tracer
from engine.training.trajectories import Trajectory, TrajectoryGroup
from envs.contracts import AdaptiveGroups
from envs.rollout import FailFast, FailurePolicy, GroupFailed, MinViable, RolloutSettings, is_constant, play_group


class Rollouts:
    """Plays groups concurrently."""

    def __init__(
        self,
        sampler: Sampler,
        settings: RolloutSettings,
        giving_back: GivingBack,
        *,
        drop_constant: bool,
        pin: bool,
        scored: bool,
        keep_version: bool,
        under_way: UnderWay,
        ledger: RolloutLedger,
        journal: Journal,
        predictor: LengthPredictor,
        adaptive: AdaptiveGroups | None = None,
        tracer: Tracer,
    ) -> None:
        """`drop_constant`: give groups whose members all have the same reward back instead of training on nothing.

        `scored`: a played group goes to be scored before it is trained. `keep_version`: by the version that was newest when it was played, which
        then stays served until that is done. `adaptive`: the dataset, where it follows what is played.
        """
        self._sampler = sampler
        self._settings = settings
        self._giving_back = giving_back
        self._drop_constant = drop_constant
        self._pin = pin
        self._scored = scored
        self._keep_version = keep_version
        self._under_way = under_way
        self._ledger = ledger
        self._journal = journal
        self._predictor = predictor
        self._adaptive = adaptive
        self._tracer = tracer

    async def run(self, jobs: Receiver[Job], finished: Sender[FinishedGroup]) -> None:
        """Plays every job; returns when the source has finished and all groups are played."""
        async with anyio.create_task_group() as groups:
            async for job in jobs:
                groups.start_soon(self._play, job, finished)

    async def _play(self, job: Job, finished: Sender[FinishedGroup]) -> None:
        ticket = job.assignment.ticket
        began = anyio.current_time()
        policy = self._policy(job)
        try:
            group = await play_group(job.builder, policy, self._settings, job.assignment.seed, job.priority)
            group = fit_to_train(group, self._settings.failure)
        except GroupFailed as error:
            self._giving_back.failed(job.assignment, error)
            return
        finally:
            policy.close()
            if self._pin:
                self._sampler.unpin(ticket.version)
        self._ledger.failed_in_a_row = 0
        now = anyio.current_time()
        self._tracer.span("rollouts", f"group {ticket.number}", began, now, version=ticket.version)
        self._predictor.observe(job.assignment.problem, group.tags, max(t.sampled_tokens for t in group.trajectories))
        if self._adaptive is not None:
            self._adaptive.observe(job.assignment.problem, group)
        if self._drop_constant and is_constant(group):
            self._giving_back.constant(job.assignment, group)
            return
        self._ledger.constant_in_a_row = 0
        newest = self._sampler.newest
        self._journal.note("finished", ticket.number, now, version=newest)
        # Without a pause since the version was unpinned: a checkpoint cut in between would play the group again, and want that version. The
        # channel has room for all groups that can be under way.
        played = FinishedGroup(job.assignment, group, newest)
        if self._scored:
            self._under_way.move(played)
            if self._keep_version:
                self._sampler.pin(newest)
        finished.send_nowait(played)

    def _policy(self, job: Job) -> ServedPolicy | FollowingPolicy:
        ticket = job.assignment.ticket
        if self._pin:
            return ServedPolicy(self._sampler, ticket.version)
        return FollowingPolicy(self._sampler, self._under_way.asked.setdefault(ticket.number, {}))


def fit_to_train(group: TrajectoryGroup, failure: FailurePolicy) -> TrajectoryGroup:
    """The group, if every member that was asked has sampled tokens with logprobs; under MinViable, without those that have not, as long as enough are left.

    Raises GroupFailed naming the member; ValueError under FailFast.
    """
    if _all_fit(group.trajectories):
        return group
    reasons = [_unfit(trajectory) for trajectory in group.trajectories]
    member = next(index for index, reason in enumerate(reasons) if reason)
    message = f"member {member} of a group {list(group.tags)} cannot be trained: {reasons[member]}"
    if isinstance(failure, FailFast):
        raise ValueError(message)
    fit = tuple(each for each, reason in zip(group.trajectories, reasons, strict=True) if not reason)
    if isinstance(failure, MinViable) and len(fit) >= failure.members:
        return attrs.evolve(group, trajectories=fit)
    raise GroupFailed(message)


def _all_fit(trajectories: Sequence[Trajectory]) -> bool:
    """The common case, for all members in one go."""
    completions = [[turn.completion for turn in trajectory.turns] for trajectory in trajectories]
    if not all(any(len(completion.tokens) for completion in member) for member in completions if member):
        return False
    flat = [completion for member in completions for completion in member]
    return all(len(each.tokens) == len(each.logprobs) for each in flat) and bool(
        np.isfinite(np.concatenate([each.logprobs for each in flat])).all()
    )


def _unfit(trajectory: Trajectory) -> str:
    """Why a member cannot be trained; empty where it can."""
    if trajectory.turns and not trajectory.sampled_tokens:
        return f"it sampled no tokens (ended: {trajectory.end})"
    for number, turn in enumerate(trajectory.turns):
        tokens, logprobs = turn.completion.tokens, turn.completion.logprobs
        if len(tokens) != len(logprobs):
            return f"turn {number} has {len(tokens)} sampled tokens but {len(logprobs)} logprobs"
        if not np.isfinite(logprobs).all():
            return f"turn {number}: the sampler's logprob of a sampled token is {logprobs[~np.isfinite(logprobs)][0]}"
    return ""
