"""Rollouts: play each job's group, grade it, clean up, send it on.

    consumes: jobs                        produces: finished groups
    waits for: the sampler, the envs      unblocked by: completions, env steps

Groups under way are bounded by the gate, so each job gets its own task at once, and the channel behind always has room.
"""

from __future__ import annotations

from typing import Literal

import anyio

from actors.prediction import LengthPredictor
from actors.sampler import FollowingPolicy, Sampler, ServedPolicy
from actors.work import FinishedGroup, Job, Journal, RolloutLedger, UnderWay
from engine.runtime.channels import Receiver, Sender
from engine.runtime.gate import StalenessGate
from engine.runtime.instrumentation import Tracer
from engine.training.trajectories import TrajectoryGroup
from envs.rollout import GroupFailed, RolloutSettings, is_constant, play_group


class Rollouts:
    """Plays groups concurrently."""

    def __init__(
        self,
        sampler: Sampler,
        gate: StalenessGate,
        settings: RolloutSettings,
        *,
        drop_constant: bool,
        pin: bool,
        constant_limit: int,
        failure_limit: int,
        under_way: UnderWay,
        ledger: RolloutLedger,
        journal: Journal,
        predictor: LengthPredictor,
        tracer: Tracer,
    ) -> None:
        """`drop_constant`: give groups whose members all have the same reward back instead of training on nothing.

        `constant_limit`: how many groups in a row may be given back for that before the gate closes: nothing is left to learn.
        `failure_limit`: how many groups in a row may fail before the run does.
        """
        self._sampler = sampler
        self._gate = gate
        self._settings = settings
        self._drop_constant = drop_constant
        self._pin = pin
        self._constant_limit = constant_limit
        self._failure_limit = failure_limit
        self._under_way = under_way
        self._ledger = ledger
        self._journal = journal
        self._predictor = predictor
        self._tracer = tracer
        self.nothing_to_learn = False

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
        except GroupFailed as error:
            self._give_back_failed(job, error)
            return
        finally:
            policy.close()
            if self._pin:
                self._sampler.unpin(ticket.version)
        self._ledger.failed_in_a_row = 0
        now = anyio.current_time()
        self._tracer.span("rollouts", f"group {ticket.number}", began, now, version=ticket.version)
        self._predictor.observe(job.assignment.problem, group.tags, max(t.sampled_tokens for t in group.trajectories))
        if self._drop_constant and is_constant(group):
            self._give_back_constant(job, group)
            return
        self._ledger.constant_in_a_row = 0
        self._journal.note("finished", ticket.number, now, version=self._sampler.newest)
        # Without a pause since the version was unpinned: a checkpoint cut in between would play the group again, and want that version. The
        # channel has room for all groups that can be under way.
        finished.send_nowait(FinishedGroup(job.assignment, group, self._sampler.newest))

    def _policy(self, job: Job) -> ServedPolicy | FollowingPolicy:
        ticket = job.assignment.ticket
        if self._pin:
            return ServedPolicy(self._sampler, ticket.version)
        return FollowingPolicy(self._sampler, self._under_way.asked.setdefault(ticket.number, {}))

    def _give_back_constant(self, job: Job, group: TrajectoryGroup) -> None:
        self._ledger.filtered += 1
        self._ledger.constant_in_a_row += 1
        self._ledger.add(group)
        self._settle(job, "filtered", reward=group.trajectories[0].reward)
        if self._ledger.constant_in_a_row >= self._constant_limit:
            self.nothing_to_learn = True
            self._gate.close()

    def _give_back_failed(self, job: Job, error: GroupFailed) -> None:
        self._ledger.failed += 1
        self._ledger.failed_in_a_row += 1
        self._ledger.add_mishaps(error.metrics)
        self._settle(job, "failed", error=str(error))
        if self._ledger.failed_in_a_row == self._failure_limit:
            raise GroupFailed(f"{self._failure_limit} groups in a row failed, the last one so: {error}") from error

    def _settle(self, job: Job, outcome: Literal["filtered", "failed"], **facts: object) -> None:
        ticket = job.assignment.ticket
        self._under_way.remove(ticket)
        self._journal.note(outcome, ticket.number, anyio.current_time(), **facts)
        self._gate.settle(ticket, outcome)
