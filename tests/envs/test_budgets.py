"""Time budgets of provisioning, turns, grading and teardown: each its own, none hangs, each is counted."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from actors import RLSettings, RunSettings, Schedule, train_rl
from engine.backends import SamplingParams
from engine.backends.simulated import SimulatedBackend
from engine.runtime.testing import every_cancellation, simulate
from engine.training.trajectories import TrajectoryGroup
from envs.contracts import Env
from envs.rollout import BudgetOverrun, FailFast, GroupFailed, MinViable, Retry, RolloutLimits, RolloutSettings
from envs.rollout import play_group as play
from tests.envs.test_rollout import Answers, Group, Scripted, after, breaks, hang, settings

BUDGETS = {"provision": 3.0, "turn": 5.0, "grading": 7.0, "teardown": 11.0}


def played(group: Group, *, seed: int = 0, seconds: list[float] | None = None, **options: Any) -> TrajectoryGroup:
    """With every budget set; how many virtual seconds it took goes into `seconds`."""
    report = simulate(lambda: play(group, Answers(), settings(**(BUDGETS | options)), seed=5), seed=seed, horizon=1e4)
    if seconds is not None:
        seconds.append(report.seconds)
    assert group.cleanups == group.attempts
    return report.unwrap()


def hanging(*members: int, on: str = "on_step", until: int = 99) -> Callable[[int, int], Env]:
    return lambda member, attempt: Scripted(member, **({on: hang} if member in members and attempt < until else {}))


@pytest.mark.parametrize("single_turn", [True, False])
@pytest.mark.parametrize("policy", [Retry(1), MinViable(3), FailFast()])
@pytest.mark.parametrize(
    ("phase", "seconds", "what", "make"),
    [
        ("provision", 3.0, "make_envs of group", lambda: {"on_make": hang}),
        ("provision", 3.0, r"Scripted\.reset", lambda: {"make": hanging(0, on="on_reset")}),
        ("grading", 7.0, "group_rewards of group", lambda: {"on_rewards": hang}),
    ],
)
def test_provision_and_grading_fail_the_group(
    phase: str, seconds: float, what: str, make: Any, policy: Any, single_turn: bool
) -> None:
    took: list[float] = []
    with pytest.raises((GroupFailed, BudgetOverrun), match=rf"{what}.* did not finish within {seconds:g} s") as caught:
        played(Group(single_turn=single_turn, **make()), failure=policy, seconds=took)
    attempts = 2 if isinstance(policy, Retry) else 1
    assert took == [pytest.approx(seconds * attempts)]
    if isinstance(policy, FailFast):
        assert isinstance(caught.value, BudgetOverrun)
        assert caught.value.phase == phase
    else:
        assert isinstance(caught.value, GroupFailed)
        retries = {"retries": 1.0} if attempts == 2 else {}
        assert caught.value.metrics == {f"timeouts/{phase}": float(attempts), **retries}


def test_what_ran_out_before_a_retry_is_counted_in_the_group_that_was_played() -> None:
    group = Group(hanging(1, on="on_reset", until=3))
    assert played(group, failure=Retry(3)).metrics == {"retries": 2.0, "timeouts/provision": 2.0}
    assert played(Group()).metrics == {}


@pytest.mark.parametrize("single_turn", [True, False])
def test_a_turn_beyond_its_budget_ends_the_episode_as_data(single_turn: bool) -> None:
    took: list[float] = []
    group = Group(hanging(1), single_turn=single_turn)
    result = played(group, seconds=took, termination_rewards={"turn_limit": -0.5})
    assert [trajectory.end for trajectory in result.trajectories] == ["done", "turn_limit", "done"]
    assert result.rewards_G.tolist() == [1.0, -0.5, 1.0]
    (turn,) = result.trajectories[1].turns
    assert len(turn.completion.tokens) == 4
    assert turn.logs == {"error": "Scripted.step did not finish within 5 s"}
    assert result.metrics == {"timeouts/turn": 1.0}
    assert took == [pytest.approx(5.0)]


def test_each_turn_has_the_whole_budget_and_sampling_takes_nothing_of_it() -> None:
    group = Group(lambda member, attempt: Scripted(member, turns=4, on_step=after(4.5)))
    report = simulate(lambda: play(group, Answers(seconds=30.0), settings(**BUDGETS), seed=5), horizon=1e4)
    assert [len(trajectory.turns) for trajectory in report.unwrap().trajectories] == [4, 4, 4]
    assert report.seconds == pytest.approx(4 * 34.5)


@pytest.mark.parametrize("single_turn", [True, False])
@pytest.mark.parametrize("interdependent", [True, False])
def test_a_turn_beyond_its_budget_is_a_failure_where_others_wait_for_it_or_where_it_is_asked_for(
    interdependent: bool, single_turn: bool
) -> None:
    group = Group(hanging(1), single_turn=single_turn, interdependent=interdependent)
    options = {} if interdependent else {"turn_overrun": "fail"}
    with pytest.raises(GroupFailed, match=r"Scripted\.step did not finish within 5 s") as caught:
        played(group, failure=Retry(1), **options)
    assert caught.value.metrics == {"timeouts/turn": 2.0, "retries": 1.0}


def test_interdependent_members_may_wait_in_reset_for_longer_than_provisioning_takes() -> None:
    group = Group(lambda member, attempt: Scripted(member, on_reset=after(100.0)), interdependent=True)
    assert len(played(group).trajectories) == 3


@pytest.mark.parametrize("policy", [Retry(1), MinViable(2)])
def test_a_teardown_that_hangs_is_bounded_counted_and_told(policy: Any) -> None:
    took: list[float] = []
    group = Group(on_cleanup=hang)
    with pytest.warns(ResourceWarning, match=r"cleanup of group Group\['kind'\] did not finish within 11 s: what it"):
        result = played(group, failure=policy, seconds=took)
    assert len(result.trajectories) == 3
    assert result.metrics == {"timeouts/teardown": 1.0}
    assert took == [pytest.approx(11.0)]
    assert group.attempts == 1  # it is not played again for that


def test_a_teardown_that_hangs_fails_the_run_where_failures_do() -> None:
    with pytest.raises(BudgetOverrun, match=r"cleanup of group Group\['kind'\] did not finish within 11 s"):
        played(Group(on_cleanup=hang), failure=FailFast())


def test_a_teardown_that_hangs_hides_no_error() -> None:
    with pytest.warns(ResourceWarning), pytest.raises(GroupFailed, match="broke") as caught:
        played(Group(lambda member, attempt: Scripted(member, on_step=breaks), on_cleanup=hang), failure=Retry(1))
    assert caught.value.metrics == {"timeouts/teardown": 2.0, "retries": 1.0}


@pytest.mark.parametrize("single_turn", [True, False])
def test_every_phase_ends_wherever_it_is_cancelled(single_turn: bool) -> None:
    """A cleanup that hangs has its budget under cancellation too, and is called once for each make_envs."""
    groups: list[Group] = []

    async def program() -> None:
        group = Group(hanging(0), on_make=after(0.1), on_cleanup=hang, single_turn=single_turn)
        groups.append(group)
        with pytest.warns(ResourceWarning):
            await play(group, Answers(seconds=0.2), settings(**BUDGETS), seed=1)

    reports = list(every_cancellation(program, horizon=1e3))
    assert len(reports) > 8
    assert all(group.cleanups == group.attempts for group in groups)
    assert all(report.seconds < 0.3 + 5.0 + 11.0 + 0.1 for report in reports)


def test_an_overrun_travels_between_processes() -> None:
    error = BudgetOverrun("turn", "Tool.step", 2.5)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.phase) == ("Tool.step did not finish within 2.5 s", "turn")


def test_the_runs_metrics_count_them(tmp_path: Path) -> None:
    """Through the engine: rows of metrics.jsonl have retries and overruns of the groups trained, filtered and failed up to that step."""
    made = 0

    def group(problem: int) -> Group:
        def make(member: int, attempt: int) -> Env:
            slow = problem % 2 == 1 and member == 0
            return Scripted(
                member, prompt=[1, 2, 3 + problem], reward=float(member), **({"on_step": hang} if slow else {})
            )

        nonlocal made
        made += 1
        broken = problem == 2 and made == 3
        return Group(make, on_make=breaks if broken else None)

    class Problems:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Group:
            return group(index)

    async def program() -> Any:
        rollout = RolloutSettings(SamplingParams(max_tokens=4), RolloutLimits(turn=2.0), Retry(1))
        return await train_rl(
            SimulatedBackend(),
            groups=Problems(),
            steps=2,
            schedule=Schedule(groups_per_step=4),
            settings=RLSettings(rollout=rollout, shuffle=False),
            run=RunSettings(tmp_path, checkpoint_every=None),
        )

    rows = simulate(program, horizon=1e5).unwrap().rows
    assert sum(row.get("groups/timeouts/turn", 0.0) for row in rows) == 4.0
    assert sum(row["groups/failed"] for row in rows) == 1.0
    assert sum(row.get("groups/retries", 0.0) for row in rows) == 1.0
    assert all("env/all/end/turn_limit" in row for row in rows)


@pytest.mark.anyio
async def test_on_both_event_loops() -> None:
    limits = RolloutLimits(turn=0.01)
    result = await play(Group(hanging(2)), Answers(), RolloutSettings(SamplingParams(max_tokens=4), limits), seed=1)
    assert [trajectory.end for trajectory in result.trajectories] == ["done", "done", "turn_limit"]
    await anyio.lowlevel.checkpoint()
