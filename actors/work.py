"""What travels between source, rollouts and trainer, and what they share: the record of groups under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from engine.backends.values import Logprobs
from engine.runtime.gate import GateState, Ticket
from engine.training.trajectories import TrajectoryGroup
from envs.contracts import GroupBuilder


@attrs.frozen
class Assignment:
    """A ticket and the problem it was issued for: enough to play the group again, exactly, after a crash."""

    ticket: Ticket
    position: int
    """Place in the stream of problems: which epoch, which problem follow from it."""
    problem: int
    """Index in the dataset."""
    seed: int


@attrs.define
class UnderWay:
    """Groups from their admission until they are trained or given back, by ticket number. Source, rollouts, feed and checkpoints share it."""

    assignments: dict[int, Assignment] = attrs.field(factory=dict)
    """Those not yet played."""
    asked: dict[int, dict[int, int]] = attrs.field(factory=dict)
    """For each of them, where every request may ask another version: the version that was asked, by the request's seed."""
    played: dict[int, FinishedGroup] = attrs.field(factory=dict)
    """Those being scored, in the order in which they were played."""

    def remove(self, ticket: Ticket) -> None:
        """The ticket's group is ready to be trained, or was given back."""
        if self.played.pop(ticket.number, None) is None:
            del self.assignments[ticket.number]
            self.asked.pop(ticket.number, None)

    def move(self, group: FinishedGroup) -> None:
        """A group is played, and goes on to be scored."""
        self.remove(group.ticket)
        self.played[group.ticket.number] = group

    def freeze(self) -> UnderWay:
        """A copy in the order of admission, for a checkpoint; without what is played, which is kept with its tokens."""
        return UnderWay(
            dict(sorted(self.assignments.items())),
            {ticket: dict(asked) for ticket, asked in sorted(self.asked.items())},
        )


@attrs.frozen
class Job:
    """A group to play."""

    assignment: Assignment
    builder: GroupBuilder
    priority: float


@attrs.frozen
class FinishedGroup:
    """A played group, to be trained."""

    assignment: Assignment
    group: TrajectoryGroup
    finished_version: int
    """Newest version when the last member finished."""
    scores: Mapping[str, Logprobs] = attrs.field(factory=dict)
    """Logprobs of the sampled tokens under other policies, by the scorer's name; each of shape (N,), members in order and their turns in order."""

    @property
    def ticket(self) -> Ticket:
        return self.assignment.ticket


@attrs.define
class Journal:
    """Events since the last report, for events.jsonl."""

    enabled: bool = True
    _events: list[dict[str, Any]] = attrs.field(factory=list)

    def note(self, event: str, ticket: int, at: float, **facts: Any) -> None:
        """Adds one event."""
        if self.enabled:
            self._events.append({"event": event, "ticket": ticket, "at": round(at, 6), **facts})

    def drain(self) -> list[dict[str, Any]]:
        """The events so far, which are then forgotten."""
        events, self._events = self._events, []
        return events


@attrs.frozen
class TagSums:
    """Sums over the episodes and groups of one tag."""

    episodes: int = 0
    groups: int = 0
    sums: Mapping[str, float] = attrs.field(factory=dict)
    """Over episodes: reward, turns, tokens, and each metric the envs gave (`metric/<name>`, with `count/<name>` beside it)."""


@attrs.frozen
class LedgerState:
    """What a checkpoint keeps of a ledger."""

    tags: Mapping[str, TagSums] = attrs.field(factory=dict)
    filtered: int = 0
    failed: int = 0
    constant_in_a_row: int = 0
    failed_in_a_row: int = 0
    mishaps: Mapping[str, float] = attrs.field(factory=dict)
    """Retries, and budgets that ran out by phase, since the last report."""


@attrs.frozen
class RLWork:
    """What a checkpoint keeps of an RL run's own state, at a step boundary."""

    gate: GateState
    position: int
    """The source's cursor."""
    finished: tuple[FinishedGroup, ...]
    """Played and not yet trained; those that lack scores last, in the order in which they were played."""
    under_way: UnderWay
    """To be played again, from their seeds."""
    ledger: LedgerState
    predictor: dict[str, tuple[int, float]]
    groups: str | None = None
    """State of a dataset that follows what was played (`AdaptiveGroups`), as JSON."""


@attrs.define
class _Sums:
    episodes: int = 0
    groups: int = 0
    sums: dict[str, float] = attrs.field(factory=dict)

    def add(self, episodes: int, sums: Mapping[str, float]) -> None:
        self.episodes += episodes
        self.groups += 1
        totals = self.sums
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value


def _sums_of(group: TrajectoryGroup) -> dict[str, float]:
    """A group's episodes, added up."""
    sums: dict[str, float] = {}
    turns = action_tokens = observation_tokens = 0
    for trajectory in group.trajectories:
        turns += len(trajectory.turns)
        for turn in trajectory.turns:
            action_tokens += len(turn.completion.tokens)
            _add_metrics(sums, turn.metrics)
        if trajectory.turns:
            observation_tokens += trajectory.turns[-1].prompt.length
        _add_metrics(sums, trajectory.metrics)
        if trajectory.end != "done":
            sums[f"end/{trajectory.end}"] = sums.get(f"end/{trajectory.end}", 0.0) + 1
    rewards = [trajectory.reward for trajectory in group.trajectories]
    low, high = min(rewards), max(rewards)
    sums["mixed" if low != high else "good" if low > 0 else "bad"] = 1.0
    sums["reward"], sums["turns"], sums["action"], sums["observation"] = (
        sum(rewards),
        turns,
        action_tokens,
        observation_tokens,
    )
    return sums


def _add_metrics(sums: dict[str, float], metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        sums[f"metric/{name}"] = sums.get(f"metric/{name}", 0.0) + value
        sums[f"count/{name}"] = sums.get(f"count/{name}", 0.0) + 1


class RolloutLedger:
    """Sums over the groups that belong to the next step's report: those it trains, and those filtered or failed meanwhile.

    A group counts under `all` and under each of its own tags, so that a filter cannot shift one kind's figures to another.
    """

    def __init__(self, state: LedgerState | None = None) -> None:
        state = state or LedgerState()
        self._tags = {tag: _Sums(sums.episodes, sums.groups, dict(sums.sums)) for tag, sums in state.tags.items()}
        self.filtered = state.filtered
        self.failed = state.failed
        self.constant_in_a_row = state.constant_in_a_row
        """Groups given back for constant rewards since one was last fit to be trained."""
        self.failed_in_a_row = state.failed_in_a_row
        """Groups that failed since one was last played to its end."""
        self._mishaps = dict(state.mishaps)

    def add(self, group: TrajectoryGroup) -> None:
        """Counts a played group."""
        if group.metrics:
            self.add_mishaps(group.metrics)
        sums = _sums_of(group)
        for tag in dict.fromkeys(("all", *group.tags)):
            self._tags.setdefault(tag, _Sums()).add(len(group.trajectories), sums)

    def add_mishaps(self, counts: Mapping[str, float]) -> None:
        """Counts what a group, played or failed, says of its retries and of budgets that ran out."""
        for name, count in counts.items():
            self._mishaps[name] = self._mishaps.get(name, 0.0) + count

    def take(self) -> RolloutLedger:
        """What was counted so far, as a ledger of its own; this one goes on from nothing."""
        taken = RolloutLedger()
        taken._tags, self._tags = self._tags, {}
        taken.filtered, self.filtered = self.filtered, 0
        taken.failed, self.failed = self.failed, 0
        taken._mishaps, self._mishaps = self._mishaps, {}
        return taken

    def metrics(self) -> dict[str, float]:
        """Means over what was counted. Names as in tinker-cookbook where they mean the same."""
        row: dict[str, float] = {}
        for tag, sums in sorted(self._tags.items()):
            _write_tag(row, f"env/{tag}", sums)
        row["groups/filtered"], row["groups/failed"] = float(self.filtered), float(self.failed)
        row.update((f"groups/{name}", count) for name, count in sorted(self._mishaps.items()))
        return row

    def state(self) -> LedgerState:
        """For a checkpoint."""
        tags = {tag: TagSums(sums.episodes, sums.groups, dict(sums.sums)) for tag, sums in self._tags.items()}
        return LedgerState(
            tags, self.filtered, self.failed, self.constant_in_a_row, self.failed_in_a_row, dict(self._mishaps)
        )


def _write_tag(row: dict[str, float], prefix: str, sums: _Sums) -> None:
    total, episodes, turns = sums.sums, sums.episodes, sums.sums["turns"]
    row[f"{prefix}/reward/total"] = total["reward"] / episodes
    row[f"{prefix}/total_episodes"] = float(episodes)
    row[f"{prefix}/turns_per_episode"] = turns / episodes
    row[f"{prefix}/ac_tokens_per_turn"] = total["action"] / turns
    row[f"{prefix}/ob_tokens_per_episode"] = total["observation"] / episodes
    for outcome in ("mixed", "good", "bad"):
        row[f"{prefix}/by_group/frac_{outcome if outcome == 'mixed' else 'all_' + outcome}"] = (
            total.get(outcome, 0.0) / sums.groups
        )
    for name, value in total.items():
        kind, _, metric = name.partition("/")
        if kind == "metric":
            row[f"{prefix}/{metric}"] = value / total[f"count/{metric}"]
        elif kind == "end":
            row[f"{prefix}/end/{metric}"] = value / episodes
