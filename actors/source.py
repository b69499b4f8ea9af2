"""The source: walks the problems, waits at the gate for each, sends jobs.

consumes: credits of the gate         produces: jobs
waits for: a credit                   unblocked by: a step trained, a group filtered or failed
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import numpy as np
from numpy.typing import NDArray

from actors.prediction import LengthPredictor
from actors.sampler import Sampler
from actors.work import Assignment, Job, Journal, UnderWay
from engine.runtime.channels import Sender
from engine.runtime.gate import GateClosed, StalenessGate
from engine.runtime.offload import offload
from engine.runtime.seeds import derive_seed
from envs.contracts import GroupBuilder, GroupDataset

_SHUFFLE, _GROUP = 1, 2
"""Branches of the run's seed."""


class ProblemStream:
    """Positions 0, 1, 2, … over a dataset's epochs, each epoch in its own order."""

    def __init__(self, dataset: GroupDataset, *, epochs: int | None, shuffle: bool, seed: int) -> None:
        """`epochs` None: without end."""
        self.dataset = dataset
        self.size = len(dataset)
        if self.size == 0:
            raise ValueError("the dataset of groups is empty: there is nothing to train on")
        self.length = None if epochs is None else epochs * self.size
        self._shuffle = shuffle
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def problem(self, position: int) -> int:
        """Index in the dataset of the problem at a position."""
        epoch, place = divmod(position, self.size)
        if not self._shuffle:
            return place
        if self._order[0] != epoch:
            generator = np.random.default_rng(derive_seed(self._seed, _SHUFFLE, epoch))
            self._order = (epoch, generator.permutation(self.size))
        return int(self._order[1][place])

    def builder(self, problem: int) -> GroupBuilder:
        """The group builder of a problem. Raises ValueError naming the problem that the dataset could not give."""
        try:
            return self.dataset[problem]
        except Exception as error:
            raise ValueError(
                f"the dataset could not give problem {problem} of {self.size}: {type(error).__name__}: {error}"
            ) from error


class Source:
    """Issues tickets to problems. Its position is the run's cursor."""

    def __init__(
        self,
        stream: ProblemStream,
        gate: StalenessGate,
        sampler: Sampler,
        *,
        seed: int,
        under_way: UnderWay,
        journal: Journal,
        predictor: LengthPredictor,
        position: int = 0,
        pin: bool = True,
    ) -> None:
        """What a restored `under_way` holds is sent again first. `pin`: keep a ticket's version served until its group is played."""
        self.position = position
        self._stream = stream
        self._gate = gate
        self._sampler = sampler
        self._seed = seed
        self._under_way = under_way
        self._journal = journal
        self._predictor = predictor
        self._reissued = list(under_way.assignments.values())
        self._pin = pin
        # Before the actors start: nobody may publish past a version that is still needed.
        for assignment in self._reissued:
            versions = (
                {assignment.ticket.version} if pin else set(under_way.asked.get(assignment.ticket.number, {}).values())
            )
            for version in sorted(versions):
                sampler.pin(version)

    async def run(self, jobs: Sender[Job]) -> None:
        """Sends jobs until the problems, or the gate's total, are used up."""
        for assignment in self._reissued:
            builder = await self._build(assignment.problem)
            self._journal.note(
                "reissued", assignment.ticket.number, anyio.current_time(), version=assignment.ticket.version
            )
            await jobs.send(self._job(assignment, builder))
        while self._stream.length is None or self.position < self._stream.length:
            problem = self._stream.problem(self.position)
            builder = await self._build(problem)
            try:
                ticket = await self._gate.admit()
            except GateClosed:
                return
            assignment = Assignment(ticket, self.position, problem, derive_seed(self._seed, _GROUP, ticket.number))
            # From admission to here without a pause: whoever cuts a checkpoint finds ticket, cursor and assignment in step.
            self.position += 1
            self._under_way.assignments[ticket.number] = assignment
            if self._pin:
                self._sampler.pin(ticket.version)
            self._journal.note(
                "admitted", ticket.number, anyio.current_time(), version=ticket.version, position=assignment.position
            )
            await jobs.send(self._job(assignment, builder))

    async def _build(self, problem: int) -> GroupBuilder:
        build: Callable[[int], GroupBuilder] = self._stream.builder
        if getattr(self._stream.dataset, "blocking", False):
            return await offload(build, problem)
        return build(problem)

    def _job(self, assignment: Assignment, builder: GroupBuilder) -> Job:
        """Earliest deadline first; among equals the longest predicted first, so that a step's tail is short."""
        predicted = self._predictor.predict(assignment.problem, tuple(builder.tags))
        lead = (
            0.0 if predicted is None else 0.5 * predicted / (predicted + 1024.0)
        )  # below 1: never past an earlier deadline
        return Job(assignment, builder, self._gate.due(assignment.ticket) - lead)
