"""The engine's scheduling rules in an event simulation, with lengths unknown or known, and a search for plans by one who knows them all.

Independent of the engine's code: an oracle for it, and the upper end of what `makespan_bound.lower_bound` bounds from below.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from benchmarks.makespan_bound import Problem

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


@attrs.frozen(eq=False)
class Plan:
    """Which step trains which group, and when each step could be published if slots were never short in the wrong moment."""

    steps_N: NDArray[np.int64]
    published: tuple[float, ...]
    """By step, seconds."""


def clairvoyant(problem: Problem, moves: int = 0) -> float:
    """The best of several schedules that know all lengths: reachable, so an upper end to what `lower_bound` bounds. `moves`: of `searched`."""
    orders = (by_arrival, longest_first, due_then_longest, late_start(problem))
    reached = [simulate(problem, order=order).makespan for order in orders]
    if moves:
        reached.append(follow(problem, searched(problem, moves)))
    return min(reached)


def searched(problem: Problem, moves: int, seed: int = 0) -> Plan:
    """A plan by simulated annealing: swaps of two groups' steps, mostly of the longest groups, that keep to the rules."""
    rng = random.Random(seed)
    size, eta, longest_N = problem.groups_per_step, problem.max_staleness, problem.seconds_NG.max(axis=1)
    by_length = np.argsort(-longest_N).tolist()
    count = len(by_length)
    plan = _relaxed(problem, np.arange(count) // size, longest_N)
    if plan is None:
        raise AssertionError("every group in the step of its own batch keeps to the rules")
    value = _value(plan)
    for move in range(moves):
        ranked = min(count - 1, int(rng.expovariate(1.0 / 20.0))) if rng.random() < 0.7 else rng.randrange(count)
        group = by_length[ranked]
        step = rng.randint(max(0, group // size - eta), min(problem.steps - 1, group // size + eta))
        here = int(plan.steps_N[group])
        others = [o for o in np.flatnonzero(plan.steps_N == step).tolist() if abs(o // size - here) <= eta]
        if step == here or not others:
            continue
        steps_N = plan.steps_N.copy()
        other = rng.choice(others)
        steps_N[group], steps_N[other] = step, here
        changed = _relaxed(problem, steps_N, longest_N)
        heat = 1.0 - move / moves + 1e-3
        if changed is not None and rng.random() < math.exp(min(0.0, (value - _value(changed)) / heat)):
            plan, value = changed, _value(changed)
    return plan


def _value(plan: Plan) -> float:
    """What the search makes small: the end, and a little the steps before it, so that every improvement shows."""
    return plan.published[-1] + 1e-3 * sum(plan.published)


def _admissions(problem: Problem, steps_N: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The version at which each group is admitted: as early as pace, order and its step allow. None: the rules forbid it."""
    batch_N = np.arange(len(steps_N)) // problem.groups_per_step
    admitted_N = np.maximum.accumulate(np.maximum(steps_N, batch_N) - problem.max_staleness).clip(0)
    return None if (admitted_N > np.minimum(steps_N, batch_N)).any() else admitted_N


def _relaxed(problem: Problem, steps_N: NDArray[np.int64], longest_N: NDArray[np.float64]) -> Plan | None:
    """When the steps could be published at the earliest, slots counted only in sum."""
    admitted_N = _admissions(problem, steps_N)
    if admitted_N is None:
        return None
    work = np.bincount(steps_N, weights=problem.seconds_NG.sum(axis=1)).cumsum() / problem.slots
    published = [0.0]
    released = np.zeros(problem.steps)
    for step in range(problem.steps):
        released[step] = published[step]
        mine = steps_N == step
        done = float((released[admitted_N[mine]] + longest_N[mine]).max())
        published.append(max(published[-1] + problem.trainer_seconds, max(done, float(work[step])) + problem.tail))
    return Plan(steps_N, tuple(published[1:]))


def follow(problem: Problem, plan: Plan) -> float:
    """The makespan on real slots when every group is trained in its planned step; slots go to the member that must start soonest."""
    admitted_N = _admissions(problem, plan.steps_N)
    if admitted_N is None:
        raise ValueError("the plan trains groups that are not admitted yet, or too stale")
    missing = np.bincount(plan.steps_N) * problem.seconds_NG.shape[1]
    waiting: list[tuple[float, int, int, float]] = []
    running: list[tuple[float, int, int]] = []
    numbers, free, now, version, until = itertools.count(), problem.slots, 0.0, -1, 0.0
    while True:
        if until <= now:  # the run's start, and every publishing
            version, until = version + 1, np.inf
            if version == problem.steps:
                return now
            for group in np.flatnonzero(admitted_N == version).tolist():
                for seconds in problem.seconds_NG[group].tolist():
                    key = plan.published[plan.steps_N[group]] - seconds
                    heapq.heappush(waiting, (key, next(numbers), group, seconds))
        while free and waiting:
            _, _, group, seconds = heapq.heappop(waiting)
            free -= 1
            heapq.heappush(running, (now + seconds, next(numbers), group))
        if missing[version] == 0 and until == np.inf:
            until = now + problem.trainer_seconds
        now = min(running[0][0] if running else np.inf, until)
        while running and running[0][0] <= now:
            free += 1
            missing[plan.steps_N[heapq.heappop(running)[2]]] -= 1


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
