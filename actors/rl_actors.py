"""The actors of a reinforcement-learning run in front of its trainer, and what they share.

Source ──jobs──▶ Rollouts ──finished groups──▶ Trainer
Source ──jobs──▶ Rollouts ──played groups──▶ Scoring ──finished groups──▶ Trainer        where other policies' logprobs are wanted
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from actors.giving_back import GivingBack
from actors.prediction import LengthPredictor
from actors.rl_feed import GroupFeed
from actors.rl_settings import RLSettings, Shaping
from actors.rollout import Rollouts
from actors.run import Run
from actors.schedule import Schedule
from actors.scoring import Scorer
from actors.scoring_ahead import ScoringAhead
from actors.shaping import Forward, Shaper
from actors.source import ProblemStream, Source
from actors.work import FinishedGroup, Job, Journal, RLWork, RolloutLedger, UnderWay
from engine.backends.ports import TrainingBackend
from engine.backends.values import Datum, Logprobs, Loss
from engine.runtime.channels import Channel, Receiver
from engine.runtime.gate import StalenessGate
from engine.runtime.program import Program
from engine.training.advantages import resolve_advantage
from engine.training.custom import scoring_datums
from envs.contracts import AdaptiveGroups


class RLActors:
    """Source, rollouts and feed of one run, and what they share."""

    publish_every_step = True

    def __init__(
        self,
        run: Run,
        stream: ProblemStream,
        schedule: Schedule,
        settings: RLSettings,
        shaping: Shaping,
        reference: Scorer | None,
        steps: int,
        predictor: LengthPredictor,
        work: RLWork | None,
    ) -> None:
        self._run, self._schedule, self._settings, self._predictor = run, schedule, settings, predictor
        self._under_way = work.under_way if work else UnderWay()
        self.journal = Journal(enabled=run.directory is not None)
        self.ledger = RolloutLedger(work.ledger if work else None)
        self.gate = StalenessGate(
            groups_per_step=schedule.groups_per_step,
            max_staleness=schedule.max_staleness,
            bound=schedule.bound,
            total=steps * schedule.groups_per_step,
            state=work.gate if work else None,
        )
        self.jobs: Channel[Job] = Channel("jobs", schedule.capacity)
        self.played: Channel[FinishedGroup] = Channel("played groups", schedule.capacity)
        self.finished: Channel[FinishedGroup] = Channel("finished groups", schedule.capacity)
        self._finished_end: Receiver[FinishedGroup] = self.finished.receiver()
        self._adaptive = stream.dataset if isinstance(stream.dataset, AdaptiveGroups) else None
        if work is not None:
            predictor.restore(work.predictor)
            if self._adaptive is not None and work.groups is not None:
                self._adaptive.restore(json.loads(work.groups))
        self.giving_back = GivingBack(
            self.gate,
            self._under_way,
            self.ledger,
            self.journal,
            constant_limit=settings.constant_limit or max(256, 8 * schedule.capacity),
            failure_limit=settings.failure_limit or max(8, schedule.capacity // 2),
        )
        unscored, ready = _sorted_out(work, shaping)
        self.source = self._make_source(stream, work.position if work else 0)
        self._scoring = self._make_scoring(shaping, reference, unscored) if shaping.sources else None
        self.rollouts = self._make_rollouts()
        self.feed = self._make_feed(shaping, ready)

    def _make_source(self, stream: ProblemStream, position: int) -> Source:
        return Source(
            stream,
            self.gate,
            self._run.sampler,
            seed=self._settings.seed,
            under_way=self._under_way,
            journal=self.journal,
            predictor=self._predictor,
            position=position,
            pin=self._schedule.pin == "group",
        )

    def _make_scoring(self, shaping: Shaping, reference: Scorer | None, kept: list[FinishedGroup]) -> ScoringAhead:
        run, settings = self._run, self._settings
        return ScoringAhead(
            shaping.sources,
            reference,
            run.sampler,
            self.giving_back,
            concurrency=settings.scoring_concurrency,
            retries=settings.sampler,
            deadline=settings.sampler.deadline or run.backend.capabilities.request_deadline,
            failure=settings.rollout.failure,
            under_way=self._under_way,
            tracer=run.tracer,
            kept=kept,
        )

    def _make_rollouts(self) -> Rollouts:
        return Rollouts(
            self._run.sampler,
            self._settings.rollout,
            self.giving_back,
            drop_constant=self._settings.drops_constant_groups,
            pin=self._schedule.pin == "group",
            scored=self._scoring is not None,
            keep_version=self._scoring is not None and self._scoring.keeps_version,
            under_way=self._under_way,
            ledger=self.ledger,
            journal=self.journal,
            predictor=self._predictor,
            adaptive=self._adaptive,
            tracer=self._run.tracer,
        )

    def _make_feed(self, shaping: Shaping, kept: list[FinishedGroup]) -> GroupFeed:
        settings = self._settings
        shaper = Shaper(
            resolve_advantage(settings.advantages),
            shaping.transforms,
            proximal=_forward(self._run.backend) if shaping.forward_proximal else None,
            train_turn=settings.train_turn,
        )
        return GroupFeed(
            self._finished_end,
            self.gate,
            self._schedule,
            shaper,
            under_way=self._under_way,
            ledger=self.ledger,
            journal=self.journal,
            kept=kept,
            samples_per_step=settings.samples_per_step,
        )

    def declare(self, program: Program) -> None:
        """The program's actors in front of the trainer."""
        jobs, finished = self.jobs.sender(), self.finished.sender()
        program.actor("source", self.source.run, jobs, feeds=jobs)
        if self._scoring is None:
            program.actor("rollouts", self.rollouts.run, self.jobs.receiver(), finished, feeds=finished)
            return
        played = self.played.sender()
        program.actor("rollouts", self.rollouts.run, self.jobs.receiver(), played, feeds=played)
        program.actor("scoring", self._scoring.run, self.played.receiver(), finished, feeds=finished)

    @property
    def trainer_owns(self) -> tuple[Receiver[FinishedGroup]]:
        """Channel ends that are the feed's."""
        return (self._finished_end,)

    def freeze(self) -> RLWork:
        """For a checkpoint, at a step boundary."""
        finished = self.feed.kept()  # first: what has come in by now is no longer under way
        finished += tuple(self._under_way.played.values())
        return RLWork(
            self.gate.state(),
            self.source.position,
            finished,
            self._under_way.freeze(),
            self.ledger.state(),
            dict(self._predictor.state()),
            None if self._adaptive is None else json.dumps(self._adaptive.state()),
        )


def _sorted_out(work: RLWork | None, shaping: Shaping) -> tuple[list[FinishedGroup], list[FinishedGroup]]:
    """A checkpoint's finished groups: those that lack scores, and those that are ready."""
    names = {source.name for source in shaping.sources}
    unscored: list[FinishedGroup] = []
    ready: list[FinishedGroup] = []
    for group in work.finished if work else ():
        (ready if names <= group.scores.keys() else unscored).append(group)
    return unscored, ready


def _forward(backend: TrainingBackend) -> Forward:
    """The logprobs of the weights as they are when it is called: inside a step, those of its start."""

    async def forward(data: Sequence[Datum]) -> Sequence[Logprobs]:
        return (await backend.forward(scoring_datums(data), Loss("cross_entropy")).result()).logprobs

    return forward
