"""The makespan benchmark's parts hold each other: bound ≤ any schedule, engine = the rules' event simulation; the workload stays what peers see."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest

from benchmarks.makespan import run_engine
from benchmarks.makespan_bound import Problem, lower_bound, simple_bound
from benchmarks.makespan_rules import Plan, clairvoyant, due_then_longest, follow, longest_first, searched, simulate
from benchmarks.workload import Workload


def problem(
    seed: int, steps: int, size: int, eta: int, *, members: int = 2, slots: int = 3, trainer: float = 0.5
) -> Problem:
    rng = np.random.default_rng(seed)
    seconds = np.round(rng.lognormal(-1.0, 1.0, (steps * size, members)), 2) + 0.01
    return Problem(seconds, size, eta, slots, trainer)


def every_plan(asked: Problem) -> list[float]:
    """The makespan of every assignment of groups to steps that the rules allow."""
    found = []
    for steps in itertools.product(range(asked.steps), repeat=len(asked.seconds_NG)):
        steps_N = np.array(steps)
        if (np.bincount(steps_N, minlength=asked.steps) != asked.groups_per_step).any():
            continue
        try:
            found.append(follow(asked, Plan(steps_N, tuple(np.arange(asked.steps) + 1.0))))
        except ValueError:
            continue
    return found


@pytest.mark.parametrize("eta", [0, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_no_schedule_beats_the_bound(eta: int, seed: int) -> None:
    asked = problem(seed, steps=3, size=2, eta=eta)
    bound = lower_bound(asked, time_limit=5.0, spacing=0.01)
    reached = every_plan(asked)
    assert reached
    assert simple_bound(asked) <= bound <= min(reached) + 1e-4
    for order in (longest_first, due_then_longest):
        assert bound <= simulate(asked, order=order).makespan + 1e-4
    assert bound <= clairvoyant(asked, moves=200) + 1e-4


@pytest.mark.parametrize("eta", [1, 2])
def test_with_slots_to_spare_the_bound_is_reached(eta: int) -> None:
    """Then lengths and the trainer are all there is, and the program models both fully but for the order of admission."""
    ratios = []
    for seed in range(8):
        asked = problem(seed, steps=3, size=2, eta=eta, slots=99)
        ratios.append(min(every_plan(asked)) / lower_bound(asked, time_limit=5.0, spacing=0.01))
    assert min(ratios) >= 1 - 1e-4
    assert sorted(ratios)[len(ratios) // 2] < 1.02


def test_the_bound_where_it_is_known() -> None:
    one = Problem(np.full((4, 1), 2.0), 1, 0, 1, 0.5)
    assert lower_bound(one) == pytest.approx(4 * 2.5)
    ahead = Problem(np.full((4, 1), 2.0), 1, 3, 4, 0.5)
    assert lower_bound(ahead) == pytest.approx(2.0 + 4 * 0.5, abs=0.02)
    assert simulate(ahead).makespan == 4.0


def test_the_search_finds_better_plans_and_keeps_the_rules() -> None:
    asked = problem(1, steps=6, size=4, eta=1, members=4, slots=16)
    start, better = searched(asked, 0), searched(asked, 3000)
    assert better.published[-1] < start.published[-1]
    assert (np.bincount(better.steps_N) == asked.groups_per_step).all()
    assert (np.abs(better.steps_N - np.arange(24) // 4) <= 1).all()
    assert follow(asked, better) >= lower_bound(asked, 5.0) - 1e-4


def test_a_plan_that_breaks_the_rules_is_refused() -> None:
    asked = problem(0, steps=3, size=1, eta=0)
    with pytest.raises(ValueError, match="not admitted yet"):
        follow(asked, Plan(np.array([1, 0, 2]), (1.0, 2.0, 3.0)))


CASES: list[tuple[int, int, Literal["hard", "soft"]]] = [
    (4, 0, "hard"),
    (4, 1, "hard"),
    (4, 2, "hard"),
    (4, 1, "soft"),
    (12, 1, "hard"),
    (12, 2, "soft"),
]


@pytest.mark.parametrize(("groups", "eta", "bound"), CASES)
def test_the_engine_does_what_the_rules_say(groups: int, eta: int, bound: Literal["hard", "soft"]) -> None:
    """`train_rl` on the virtual clock and an event simulation that shares no code with it take the same time, to the simulated clock's microsecond."""
    case: dict[str, Any] = {"groups": groups, "trainer": 0.5, "staleness": eta, "minibatches": 1}
    work = Workload(2, groups, 8, mean_seconds=0.5)
    places = itertools.product(range(10), range(groups))
    seconds = np.array([[work.seconds(*place, member) for member in range(8)] for place in places])
    rules = simulate(Problem(seconds, groups, eta, 64, 0.5), bound)
    engine = run_engine(case, 2, bound)
    assert engine.makespan == pytest.approx(rules.makespan, abs=1e-3)
    assert engine.wasted == 0
    assert engine.staleness_max == rules.staleness_max
    assert engine.staleness_mean == pytest.approx(rules.staleness_mean)
    if bound == "hard":
        assert engine.staleness_max <= eta


def test_the_soft_bound_is_not_a_bound_and_the_hard_one_is() -> None:
    asked = problem(3, steps=12, size=4, eta=1, members=4, slots=12)
    assert simulate(asked, "soft").staleness_max > 1
    assert simulate(asked, "hard").staleness_max <= 1
    assert simulate(asked, "soft").makespan <= simulate(asked, "hard").makespan


def test_the_workload_is_what_peers_were_measured_on() -> None:
    """Draws are pinned: figures measured elsewhere on this workload stay comparable."""
    work = Workload(3, 4, 3, mean_seconds=0.5)
    assert [work.length(0, 0, member) for member in range(3)] == [179, 125, 147]
    tokens, logprobs, seconds = work.completion(1, 2, 0)
    assert tokens[:5].tolist() == [38, 115, 35, 126, 63]
    assert logprobs[0] == pytest.approx(-0.5202328562736511)
    assert seconds == len(tokens) * work.seconds_per_token
    assert [work.reward(0, group, 0) for group in range(4)] == [0.0, 0.0, 1.0, 0.0]
    lengths = [Workload(0, mean_seconds=0.5).length(b, g, m) for b in range(10) for g in range(16) for m in range(8)]
    assert np.mean(lengths) * 0.0025 == pytest.approx(0.5, rel=0.1)
    several = Workload(turns=3)
    assert [several.turn_of(length) for length in (64, 112, 160)] == [0, 1, 2]
