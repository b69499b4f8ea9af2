"""Groups that will not be trained: their tickets go back, they are counted, and the run ends when it gives back nothing else."""

from __future__ import annotations

from typing import Literal

import anyio
import attrs

from actors.work import Assignment, Journal, RolloutLedger, UnderWay
from engine.runtime.gate import StalenessGate
from engine.training.trajectories import TrajectoryGroup
from envs.rollout import GroupFailed


@attrs.define
class GivingBack:
    """Gives tickets back: of groups with constant rewards, and of groups that failed."""

    gate: StalenessGate
    under_way: UnderWay
    ledger: RolloutLedger
    journal: Journal
    constant_limit: int
    """How many groups in a row may be given back for constant rewards before the gate closes: nothing is left to learn."""
    failure_limit: int
    """How many groups in a row may fail before the run does."""
    nothing_to_learn: bool = False
    unscored_in_a_row: int = 0
    """Groups that could not be scored since one last could."""

    def constant(self, assignment: Assignment, group: TrajectoryGroup) -> None:
        """All members had the same reward."""
        self.ledger.filtered += 1
        self.ledger.constant_in_a_row += 1
        self.ledger.add(group)
        self._settle(assignment, "filtered", reward=group.trajectories[0].reward)
        if self.ledger.constant_in_a_row >= self.constant_limit:
            self.nothing_to_learn = True
            self.gate.close()

    def failed(self, assignment: Assignment, error: GroupFailed) -> None:
        """The group could not be played. Raises GroupFailed where that happened too often in a row."""
        self.ledger.failed_in_a_row += 1
        self._failed(assignment, error, self.ledger.failed_in_a_row)

    def unscored(self, assignment: Assignment, error: GroupFailed) -> None:
        """The group was played and could not be scored. Raises GroupFailed where that happened too often in a row."""
        self.unscored_in_a_row += 1
        self._failed(assignment, error, self.unscored_in_a_row)

    def _failed(self, assignment: Assignment, error: GroupFailed, in_a_row: int) -> None:
        self.ledger.failed += 1
        self.ledger.add_mishaps(error.metrics)
        self._settle(assignment, "failed", error=str(error))
        if in_a_row == self.failure_limit:
            raise GroupFailed(f"{in_a_row} groups in a row failed, the last one so: {error}") from error

    def _settle(self, assignment: Assignment, outcome: Literal["filtered", "failed"], **facts: object) -> None:
        ticket = assignment.ticket
        self.under_way.remove(ticket)
        self.journal.note(outcome, ticket.number, anyio.current_time(), **facts)
        self.gate.settle(ticket, outcome)
