"""What a run does with rewards that are no numbers, members that said nothing, groups that fail, and rewards that never differ."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest

from actors import RLSettings, RunResult, Schedule, train_rl
from engine.backends import Completion
from engine.backends.simulated import Draw, SamplerModel, SimulatedBackend
from engine.backends.values import SampleRequest, SamplingParams
from engine.runtime import ActorsFailed
from engine.runtime.testing import simulate
from envs.contracts import Env, GroupBuilder
from envs.rollout import FailFast, FailurePolicy, MinViable, Retry, RolloutSettings
from tests.actors.harness import Reward, Watched, never_constant, nothing_left

SCHEDULE = Schedule(groups_per_step=2)


def run(
    dataset: Any,
    failure: FailurePolicy,
    *,
    backend: SimulatedBackend | None = None,
    schedule: Schedule = SCHEDULE,
    **options: Any,
) -> RunResult:
    backend = backend or SimulatedBackend(record=True)
    settings = RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=8), failure=failure), **options)

    async def program() -> RunResult:
        return await train_rl(backend, groups=dataset, steps=3, schedule=schedule, settings=settings)

    try:
        return simulate(program).unwrap()
    finally:
        if isinstance(dataset, Watched):
            assert nothing_left(backend, dataset.record) == []


def message_of(failed: pytest.ExceptionInfo[ActorsFailed]) -> str:
    error: BaseException = failed.value.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


# ---- rewards


def bad_reward(value: float, problems: int = 4) -> Reward:
    def reward(problem: int, member: int, completion: Completion) -> float:
        return value if problem < problems and member == 1 else never_constant(problem, member, completion)

    return reward


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_costs_its_group_and_is_counted(value: float) -> None:
    result = run(Watched(reward=bad_reward(value)), Retry(1))
    assert [row["groups/trained"] for row in result.rows] == [2, 2, 2]
    assert sum(row["groups/failed"] for row in result.rows) > 0
    assert all(math.isfinite(value) for row in result.rows for value in row.values())


def test_a_reward_that_is_no_number_ends_a_run_that_shall_fail_fast() -> None:
    with pytest.raises(ActorsFailed) as failed:
        run(Watched(reward=bad_reward(math.nan)), FailFast())
    assert "member 1 of group" in message_of(failed)
    assert "has the reward nan: rewards must be finite numbers" in message_of(failed)


def test_rewards_that_are_never_numbers_end_the_run() -> None:
    with pytest.raises(ActorsFailed) as failed:
        run(Watched(reward=bad_reward(math.nan, 1000)), Retry(1), failure_limit=4)
    assert "4 groups in a row failed" in message_of(failed)


# ---- groups that cannot be made, and members that cannot be trained


class EmptyGroup(GroupBuilder):
    async def make_envs(self) -> list[Env]:
        return []


@pytest.mark.parametrize("failure", [FailFast(), Retry(1), MinViable(1)])
def test_an_empty_group_is_a_failure(failure: FailurePolicy) -> None:
    with pytest.raises(ActorsFailed) as failed:
        run([EmptyGroup()], failure, failure_limit=3)
    assert "gave no envs; a group has at least one member" in message_of(failed)


def silent(request: SampleRequest, sample: int) -> Draw:
    """Member 1 of the problems below 4 says nothing."""
    _, problem, member, _ = request.prompt.tokens.tolist()
    tokens = np.array([] if problem < 4 and member == 1 else [40, 41 + member], np.int32)
    return Draw(tokens)


def unlikely(request: SampleRequest, sample: int) -> Draw:
    _, problem, member, _ = request.prompt.tokens.tolist()
    logprob = np.nan if problem < 4 and member == 1 else -1.0
    return Draw(np.array([40, 41], np.int32), logprobs=np.array([-1.0, logprob], np.float32))


def without_logprobs(request: SampleRequest, sample: int) -> Draw:
    return attrs.evolve(unlikely(request, sample), logprobs=np.empty(0, np.float32))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (silent, "it sampled no tokens (ended: done)"),
        (unlikely, "turn 0: the sampler's logprob of a sampled token is nan"),
        (without_logprobs, "turn 0 has 2 sampled tokens but 0 logprobs"),
    ],
)
def test_a_member_that_cannot_be_trained(script: Any, reason: str) -> None:
    """Costs the run, its group, or itself, by the failure policy."""

    def backend() -> SimulatedBackend:
        return SimulatedBackend(SamplerModel(script=script), record=True)

    with pytest.raises(ActorsFailed) as failed:
        run(Watched(size=3, problems=4), FailFast(), backend=backend())
    assert "cannot be trained: " + reason in message_of(failed)
    if script is without_logprobs:
        return
    result = run(Watched(size=3), Retry(1), backend=backend(), failure_limit=10)
    assert sum(row["groups/failed"] for row in result.rows) > 0
    assert [row["optim/datums"] for row in result.rows] == [6, 6, 6]
    result = run(Watched(size=3), MinViable(2), backend=backend())
    assert sum(row["groups/failed"] for row in result.rows) == 0
    assert min(row["optim/datums"] for row in result.rows) < 6
    result = run(Watched(size=3), MinViable(3), backend=backend(), failure_limit=10)
    assert sum(row["groups/failed"] for row in result.rows) > 0


# ---- constant rewards


def constant(problem: int, member: int, completion: Completion) -> float:
    return 1.0


def test_constant_rewards_are_replaced_until_nothing_is_left_to_learn() -> None:
    result = run(Watched(reward=constant), Retry(1), constant_limit=12)
    assert (result.ending, result.version, list(result.rows)) == ("nothing_to_learn", 0, [])


def test_steps_of_constant_rewards_are_taken_where_that_is_asked_for() -> None:
    """Nothing moves, and the row says why."""
    backend = SimulatedBackend(record=True)
    result = run(Watched(reward=constant), Retry(1), drop_constant_groups=False, backend=backend)
    assert result.ending == "complete"
    for row in result.rows:
        assert row["env/all/by_group/frac_all_good"] == 1.0
        assert row["env/all/by_group/frac_mixed"] == 0.0
        assert row["optim/loss"] == 0.0
        assert row["groups/constant"] == row["groups/trained"] == 2.0


def test_an_advantage_that_cannot_be_computed_names_the_problem() -> None:
    def minus(problem: int, member: int, completion: Completion) -> float:
        return -1.0 - member

    with pytest.raises(ActorsFailed) as failed:
        run(Watched(reward=minus), Retry(1), advantages="maxrl")
    error = failed.value.exceptions[0]
    assert "maxrl needs rewards of at least 0" in str(error)
    assert any(note.startswith("the group is of problem ") for note in error.__notes__)
