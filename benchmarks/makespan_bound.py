"""How fast could any schedule be? Lower bounds on a run's makespan at a staleness bound, and a simulation of the engine's rules.

The problem. N = B·S groups, admitted in the source's order i = 0 … N-1; group i's members take known times p_im, one of `slots` slots each,
without interruption. Step s trains B groups, occupies the serial trainer for T after the step before is published, and is published at C_s (C_-1 = 0).
At most (η+1)·B groups are admitted and not trained, and a group trained in step s was admitted at version s-η or later. With `minibatches` = M the
part of T that must follow the last group is that of its own minibatch and of the optimizer step; with M = 1 it is all of T.

Let a_i be the version at which group i is admitted, s_i the step that trains it: a_i ≤ s_i ≤ a_i + η. By the order of admission and the pace,
⌊i/B⌋ - η ≤ a_i ≤ ⌊i/B⌋, so s_i is within η of ⌊i/B⌋, and no member of group i starts before C_{a-1} for a = max(s_i, ⌊i/B⌋) - η.

`lower_bound` drops what is hard: how samples are packed onto slots, and part of the order of admission. It keeps, in a mixed-integer program,
  trainer     C_s ≥ C_{s-1} + T
  longest     C_s ≥ C_{a-1} + max_m p_im + tail for every group i trained in step s, a as above
  capacity    the work of all groups trained in steps up to s that cannot start before C_u fits between C_u and C_s - tail on all slots, for all u < s
with groups of one batch and (rounded down) the same longest member counted together. Each holds for every schedule, preemptive ones and those that
know all lengths included, so the solver's dual bound is a bound on them all, whether or not it finishes. It is a bound on omniscience: the program gathers
the longest groups of several batches into the same steps, which nobody can who does not know them. `makespan_rules` plays the engine's rules with lengths
unknown or known, and searches for plans that hold on real slots: what is reachable lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def lower_bound(problem: Problem, time_limit: float = 20.0, spacing: float = 0.25) -> float:
    """The bound described above, at least `simple_bound`.

    `time_limit`: seconds for the solver. `spacing`: longest members are rounded down to multiples of so many seconds. More time and a finer
    spacing can only raise the bound; every value is valid.
    """
    simple = simple_bound(problem)
    if problem.max_staleness == 0:
        return simple  # every group's step is fixed, and the program's optimum is the sum over steps
    program = _Program(problem, spacing)
    matrix, lower, upper = program.matrix()
    found = milp(
        program.objective(),
        constraints=LinearConstraint(matrix, lower, upper),
        integrality=program.integrality(),
        bounds=Bounds(0.0, program.upper_bounds()),
        options={"time_limit": time_limit, "mip_rel_gap": 5e-3},
    )
    dual = getattr(found, "mip_dual_bound", None)
    # Rounding within the solver's tolerance may lift its bound by as much.
    return simple if dual is None else max(simple, float(dual) - 1e-5)


class _Program:
    """The mixed-integer program. Variables, by key:

    ("C", s)        when step s is published
    ("n", b, k, s)  how many groups of batch b and length class k are trained in step s; integral by itself once the z are
    ("z", r, k, s)  1 if step s trains a group of batch r or later (r = s: of any batch) whose class is k or longer
    """

    def __init__(self, problem: Problem, spacing: float) -> None:
        self._problem = problem
        levels, class_N = np.unique(np.floor(problem.seconds_NG.max(axis=1) / spacing), return_inverse=True)
        self._rises = np.diff(levels * spacing, prepend=0.0).tolist()
        self._members: dict[tuple[int, int], list[int]] = {}
        for group, kind in enumerate(class_N.tolist()):
            self._members.setdefault((group // problem.groups_per_step, kind), []).append(group)
        self._columns: dict[tuple[Any, ...], int] = {("C", step): step for step in range(problem.steps)}
        self._terms: list[tuple[int, int, float]] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._choices: dict[int, list[tuple[int, int]]] = {step: [] for step in range(problem.steps)}
        for batch, kind in self._members:
            for step in self._window(batch):
                self._choices[step].append((batch, kind))

    def objective(self) -> NDArray[np.float64]:
        cost = np.zeros(len(self._columns))
        cost[self._problem.steps - 1] = 1.0
        return cost

    def integrality(self) -> NDArray[np.int64]:
        return np.array([key[0] == "z" for key in self._columns], np.int64)

    def upper_bounds(self) -> NDArray[np.float64]:
        return np.array([1.0 if key[0] == "z" else np.inf for key in self._columns])

    def matrix(self) -> tuple[Any, list[float], list[float]]:
        """Rows of lower ≤ matrix · variables ≤ upper."""
        for (batch, kind), members in self._members.items():
            every = [(("n", batch, kind, step), 1.0) for step in self._window(batch)]
            self._add(every, len(members), len(members))
        work = self._least_work()
        places = self._problem.groups_per_step
        for step in range(self._problem.steps):
            self._add([(("n", *choice, step), 1.0) for choice in self._choices[step]], places, places)
            self._add([(("C", step), 1.0), *self._minus(step - 1)], self._problem.trainer_seconds)
            self._longest(step)
            self._capacity(step, work)
        rows, columns, values = zip(*self._terms, strict=True)
        shape = (len(self._lower), len(self._columns))
        return coo_array((values, (rows, columns)), shape=shape).tocsr(), self._lower, self._upper

    def _longest(self, step: int) -> None:
        """A step follows the release of each of its groups by that group's longest member and the tail."""
        problem = self._problem
        last = min(problem.steps - 1, step + problem.max_staleness)
        for batch in range(step, last + 1):
            levels = range(len(self._rises))
            chain = [(("z", batch, kind, step), -self._rises[kind]) for kind in levels]
            self._add([(("C", step), 1.0), *self._minus(batch - problem.max_staleness - 1), *chain], problem.tail)
            for kind in levels[1:]:
                self._add([(("z", batch, kind - 1, step), 1.0), (("z", batch, kind, step), -1.0)], 0.0)
            for other, kind in self._choices[step]:
                if batch in (step, other):
                    most = float(min(len(self._members[other, kind]), problem.groups_per_step))
                    self._add([(("z", batch, kind, step), most), (("n", other, kind, step), -1.0)], 0.0)
                if batch < last and batch in (step, other):
                    self._add([(("z", batch, kind, step), 1.0), (("z", batch + 1, kind, step), -1.0)], 0.0)

    def _capacity(self, step: int, work: dict[tuple[int, int], float]) -> None:
        """What cannot start before step `since` is published, and is trained by `step`, fits between the two on all slots."""
        problem = self._problem
        for since in range(-1, step):
            within = [
                (("n", *choice, trained), -work[choice])
                for trained in range(step + 1)
                for choice in self._choices[trained]
                if max(-1, max(trained, choice[0]) - problem.max_staleness - 1) >= since
            ]
            self._add([(("C", step), 1.0), *self._minus(since), *within], problem.tail)

    def _window(self, batch: int) -> range:
        return range(
            max(0, batch - self._problem.max_staleness),
            min(self._problem.steps, batch + self._problem.max_staleness + 1),
        )

    def _least_work(self) -> dict[tuple[int, int], float]:
        """Seconds of all slots that a group of a class takes at least."""
        work_N = self._problem.seconds_NG.sum(axis=1) / self._problem.slots
        return {choice: float(work_N[members].min()) for choice, members in self._members.items()}

    def _minus(self, step: int) -> list[tuple[tuple[Any, ...], float]]:
        """-C_step; the run starts at C_-1 = 0."""
        return [(("C", step), -1.0)] if step >= 0 else []

    def _add(self, terms: Sequence[tuple[tuple[Any, ...], float]], lower: float, upper: float = np.inf) -> None:
        row = len(self._lower)
        for key, value in terms:
            self._terms.append((row, self._columns.setdefault(key, len(self._columns)), value))
        self._lower.append(lower)
        self._upper.append(upper)
