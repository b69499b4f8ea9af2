"""How fast could any schedule be? Lower bounds on a run's makespan at a staleness bound, and a simulation of the engine's rules.

The problem. N = B·S groups, admitted in the source's order i = 0 … N-1; group i's members take known times p_im, one of `slots` slots each,
without interruption. Step s trains B groups, occupies the serial trainer for T after the step before is published, and is published at C_s (C_-1 = 0).
At most (η+1)·B groups are admitted and not trained, and a group trained in step s was admitted at version s-η or later. With `minibatches` = M the
part of T that must follow the last group is that of its own minibatch and of the optimizer step; with M = 1 it is all of T.

Let a_i be the version at which group i is admitted, s_i the step that trains it: a_i ≤ s_i ≤ a_i + η. By the order of admission and the pace,
⌊i/B⌋ - η ≤ a_i ≤ ⌊i/B⌋, so s_i is within η of ⌊i/B⌋, and no member of group i starts before C_{a-1} for a = max(s_i, ⌊i/B⌋) - η.

`lower_bound` drops from this all that is hard: how samples are packed onto slots. It keeps, as a mixed-integer program over x_is (group i is trained in
step s):
  trainer     C_s ≥ C_{s-1} + T
  longest     C_s ≥ C_{a-1} + x_is · max_m p_im + tail, for every group i and step s, a as above
  capacity    all work of groups trained in steps up to s that cannot start before C_u fits between C_u and C_s - tail on all slots, for all u < s
Each holds for every schedule, preemptive ones and those that know all lengths included, so the solver's dual bound is a bound on them all, whether or not
the solver finishes. `simulate` plays the engine's rules with lengths unknown (order of arrival) or known (longest first): what is reachable lies between.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

OPTIMIZER_SHARE = 0.2
"""Of a step's trainer time: the optimizer step and the publishing, which follow all of its groups."""


@attrs.frozen(eq=False)
class Problem:
    """A run to be scheduled. Dimension suffixes: N groups, G members."""

    seconds_NG: NDArray[np.float64]
    """Duration of each member's completion."""
    groups_per_step: int
    max_staleness: int
    slots: int
    trainer_seconds: float
    minibatches: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps; the groups must make whole ones."""
        return len(self.seconds_NG) // self.groups_per_step

    @property
    def tail(self) -> float:
        """Trainer time that must follow the last group of a step."""
        return self.trainer_seconds * (OPTIMIZER_SHARE + (1.0 - OPTIMIZER_SHARE) / self.minibatches)

    @property
    def ideal(self) -> float:
        """Sampling spread over all slots, or training, whichever is longer."""
        return max(float(self.seconds_NG.sum()) / self.slots, self.steps * self.trainer_seconds)


def simple_bound(problem: Problem) -> float:
    """Without a solver: all sampling, then the tail; the first group's longest member, then all training; for η = 0 every step by itself."""
    steps, trainer, tail = problem.steps, problem.trainer_seconds, problem.tail
    longest_N = problem.seconds_NG.max(axis=1)
    bounds = [float(problem.seconds_NG.sum()) / problem.slots + tail, float(longest_N.max()) + tail]
    bounds.append(float(np.partition(longest_N, problem.groups_per_step - 1)[problem.groups_per_step - 1]) + tail)
    bounds[-1] += (steps - 1) * trainer
    if problem.max_staleness == 0:
        batches = problem.seconds_NG.reshape(steps, -1)
        bounds.append(float(np.maximum(batches.sum(axis=1) / problem.slots, batches.max(axis=1)).sum()) + steps * tail)
    return max(bounds)


def lower_bound(problem: Problem, time_limit: float = 30.0) -> float:
    """The mixed-integer bound described above, at least `simple_bound`. `time_limit`: seconds for the solver; more can only raise the bound."""
    simple = simple_bound(problem)
    if problem.max_staleness == 0:
        return simple  # every x is fixed, and the program's optimum is the sum over steps
    program = _Program(problem)
    matrix, lower = program.matrix()
    # Rounding within the solver's tolerance may lift its bound by as much.
    found = milp(
        program.objective(),
        constraints=LinearConstraint(matrix, lower, np.inf),
        integrality=program.integrality(),
        bounds=program.bounds(),
        options={"time_limit": time_limit, "mip_rel_gap": 1e-3},
    )
    dual = getattr(found, "mip_dual_bound", None)
    return max(simple, float(dual) - 1e-5) if dual is not None else simple


class _Program:
    """The mixed-integer program: variables C_0 … C_{S-1}, then x_is for the steps within η of ⌊i/B⌋."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._steps = problem.steps
        place, eta = np.arange(len(problem.seconds_NG)) // problem.groups_per_step, problem.max_staleness
        self._choices = [
            (group, step)
            for group, middle in enumerate(place.tolist())
            for step in range(max(0, middle - eta), min(self._steps, middle + eta + 1))
        ]
        self._place = place
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._lower: list[float] = []

    def objective(self) -> NDArray[np.float64]:
        cost = np.zeros(self._steps + len(self._choices))
        cost[self._steps - 1] = 1.0
        return cost

    def integrality(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(self._steps, np.int64), np.ones(len(self._choices), np.int64)])

    def bounds(self) -> Bounds:
        upper = np.concatenate([np.full(self._steps, np.inf), np.ones(len(self._choices))])
        return Bounds(np.zeros(len(upper)), upper)

    def _add(self, terms: Sequence[tuple[int, float]], lower: float) -> None:
        """Σ value · variable ≥ lower; a negative variable stands for C_-1 = 0."""
        row = len(self._lower)
        for column, value in terms:
            if column >= 0:
                self._rows.append(row)
                self._columns.append(column)
                self._values.append(value)
        self._lower.append(lower)

    def matrix(self) -> tuple[Any, NDArray[np.float64]]:
        problem, steps = self._problem, self._steps
        longest_N, work_N = problem.seconds_NG.max(axis=1), problem.seconds_NG.sum(axis=1) / problem.slots
        by_group: dict[int, list[int]] = {}
        by_step: dict[int, list[int]] = {}
        for index, (group, step) in enumerate(self._choices):
            by_group.setdefault(group, []).append(steps + index)
            by_step.setdefault(step, []).append(steps + index)
            released = max(self._released_after(group, step), -1)
            length = float(longest_N[group])
            self._add([(step, 1.0), (released, -1.0), (steps + index, -length)], problem.tail)
        for columns, count in [
            *((columns, 1) for columns in by_group.values()),
            *((columns, problem.groups_per_step) for columns in by_step.values()),
        ]:
            self._add([(column, 1.0) for column in columns], float(count))
            self._add([(column, -1.0) for column in columns], -float(count))
        for step in range(steps):
            self._add([(step, 1.0), (step - 1, -1.0)], problem.trainer_seconds)
            for since in range(-1, step):
                within = [
                    (steps + index, -float(work_N[group]))
                    for index, (group, trained) in enumerate(self._choices)
                    if trained <= step and self._released_after(group, trained) >= since
                ]
                if within:
                    self._add([(step, 1.0), (since, -1.0), *within], problem.tail)
        shape = (len(self._lower), steps + len(self._choices))
        return coo_array((self._values, (self._rows, self._columns)), shape=shape).tocsr(), np.array(self._lower)

    def _released_after(self, group: int, step: int) -> int:
        """The step whose publishing lets the group start, if it is trained in `step`; -1: the run's start."""
        return max(-1, max(step, int(self._place[group])) - self._problem.max_staleness - 1)


Order = Callable[[int, int, float], Any]
"""Sorts waiting members: (group's number, step it is due by, its seconds) → key; lowest first."""


def by_arrival(_group: int, due: int, _seconds: float) -> Any:
    """Earliest deadline, then the order of arrival: nothing is known of lengths."""
    return due


def longest_first(_group: int, _due: int, seconds: float) -> Any:
    """Lengths are known: the longest member first, whatever it is due by."""
    return -seconds


def due_then_longest(_group: int, due: int, seconds: float) -> Any:
    """Lengths are known: earliest deadline, then the longest member."""
    return due, -seconds


def late_start(problem: Problem) -> Order:
    """Lengths are known: the member that must start soonest to be done when its step could be trained, at the ideal pace."""
    pace = problem.ideal / problem.steps

    def order(_group: int, due: int, seconds: float) -> Any:
        return due * pace - seconds

    return order


@attrs.frozen
class Played:
    """How a schedule went."""

    makespan: float
    staleness_mean: float
    staleness_max: int


def clairvoyant(problem: Problem) -> float:
    """The best of several schedules that know all lengths: reachable, so an upper end to what `lower_bound` bounds."""
    orders = (by_arrival, longest_first, due_then_longest, late_start(problem))
    return min(simulate(problem, order=order).makespan for order in orders)


def simulate(problem: Problem, bound: Literal["hard", "soft"] = "hard", order: Order = by_arrival) -> Played:
    """Plays the engine's rules, event by event: admission by allowed, slots by `order`, finished groups taken earliest deadline first
    (hard) or as they finish (soft), one step trained after another."""
    return _Rules(problem, bound, order).play()


class _Rules:
    """The state of a simulated run."""

    def __init__(self, problem: Problem, bound: str, order: Order) -> None:
        self._problem, self._bound, self._order = problem, bound, order
        self._version = self._admitted = self._trained = 0
        self._free = problem.slots
        self._waiting: list[tuple[Any, int, int, float]] = []
        self._running: list[tuple[float, int, int]] = []
        self._starts = itertools.count()
        self._arrivals = itertools.count()
        self._unfinished = [problem.seconds_NG.shape[1]] * len(problem.seconds_NG)
        self._admitted_at: dict[int, int] = {}
        self._outstanding: set[int] = set()
        self._ready: list[int] = []
        self._taken: list[int] = []
        self._training_until = np.inf
        self._staleness: list[int] = []

    def play(self) -> Played:
        now = 0.0
        while self._version < self._problem.steps:
            self._admit()
            self._fill(now)
            self._take()
            if len(self._taken) == self._problem.groups_per_step and self._training_until == np.inf:
                self._training_until = now + self._problem.trainer_seconds
            next_done = self._running[0][0] if self._running else np.inf
            now = min(next_done, self._training_until)
            if self._training_until <= now:
                self._publish()
            while self._running and self._running[0][0] <= now:
                self._finish(heapq.heappop(self._running)[2])
        return Played(now, float(np.mean(self._staleness)), max(self._staleness))

    def _admit(self) -> None:
        problem = self._problem
        allowed = (problem.max_staleness + 1) * problem.groups_per_step
        while self._admitted < len(self._unfinished) and self._admitted - self._trained < allowed:
            group = self._admitted
            self._admitted += 1
            self._admitted_at[group] = self._version
            self._outstanding.add(group)
            for seconds in problem.seconds_NG[group].tolist():
                key = self._order(group, self._version + problem.max_staleness, seconds)
                heapq.heappush(self._waiting, (key, next(self._arrivals), group, seconds))

    def _fill(self, now: float) -> None:
        while self._free and self._waiting:
            _, _, group, seconds = heapq.heappop(self._waiting)
            self._free -= 1
            heapq.heappush(self._running, (now + seconds, next(self._starts), group))

    def _finish(self, group: int) -> None:
        self._free += 1
        self._unfinished[group] -= 1
        if not self._unfinished[group]:
            self._ready.append(group)

    def _take(self) -> None:
        while self._ready and len(self._taken) < self._problem.groups_per_step:
            group = self._ready[0]
            if self._bound == "hard":
                group = min(self._ready, key=lambda ready: (self._admitted_at[ready], ready))
                if not self._others_can_wait(group):
                    return
            self._ready.remove(group)
            self._outstanding.remove(group)
            self._taken.append(group)

    def _others_can_wait(self, group: int) -> bool:
        """Were `group` taken now: could every other group still be trained by its deadline, B a step?"""
        dues = sorted(self._admitted_at[other] + self._problem.max_staleness for other in self._outstanding - {group})
        places = self._problem.groups_per_step
        return all(
            position < (due - self._version + 1) * places - len(self._taken) - 1 for position, due in enumerate(dues)
        )

    def _publish(self) -> None:
        self._staleness += [self._version - self._admitted_at[group] for group in self._taken]
        self._trained += len(self._taken)
        self._taken = []
        self._version += 1
        self._training_until = np.inf
