"""Datasets that follow what was played: observed once for each group, and part of every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors import RLSettings, RunSettings, Schedule, group_evaluation, train_rl
from engine.backends import Completion, ModelInput, SamplingParams
from engine.backends.simulated import SamplerModel, SimulatedBackend
from engine.runtime import simulate
from engine.training.trajectories import TrajectoryGroup
from envs.contracts import AdaptiveGroups, Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings


class Attempt:
    def __init__(self, problem: int, level: int, member: int) -> None:
        self.prompt = ModelInput.from_tokens([1, 2, problem % 50, level])
        self.member = member

    async def reset(self) -> Observation:
        return Observation(self.prompt)

    async def step(self, completion: Completion) -> Step:
        return Step(float(self.member), metrics={"level": float(self.prompt.tokens[3])})


class Levelled(GroupBuilder):
    single_turn = True

    def __init__(self, problem: int, level: int) -> None:
        self.problem, self.level = problem, level
        self.tags = (f"level_{level}",)

    async def make_envs(self) -> Sequence[Env]:
        return [Attempt(self.problem, self.level, member) for member in range(2)]


class Ladder:
    """Every third group that was played raises the level of the problems that were not asked for yet."""

    def __init__(self) -> None:
        self.observed: list[int] = []
        self.asked: dict[int, int] = {}

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> GroupBuilder:
        level = self.asked.setdefault(index, len(self.observed) // 3)
        return Levelled(index, level)

    def observe(self, index: int, group: TrajectoryGroup) -> None:
        assert group.tags == (f"level_{self.asked[index]}",)
        self.observed.append(index)

    def state(self) -> Mapping[str, Any]:
        return {"observed": self.observed, "asked": [[index, level] for index, level in self.asked.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.observed = list(state["observed"])
        self.asked = {int(index): int(level) for index, level in state["asked"]}


def levels(
    groups: Ladder, steps: int, directory: Path, schedule: Schedule, *, resume: bool = False
) -> list[dict[str, float]]:
    async def program() -> Any:
        return await train_rl(
            SimulatedBackend(SamplerModel()),
            groups=groups,
            steps=steps,
            schedule=schedule,
            settings=RLSettings(
                rollout=RolloutSettings(SamplingParams(max_tokens=4)), shuffle=False, drop_constant_groups=False
            ),
            run=RunSettings(directory, resume=resume, checkpoint_every=1),
        )

    rows = simulate(program, horizon=1e6).unwrap().rows
    return [{key: value for key, value in row.items() if "level" in key} for row in rows]


def test_it_is_one_by_its_methods() -> None:
    assert isinstance(Ladder(), AdaptiveGroups)
    assert not isinstance([], AdaptiveGroups)


@pytest.mark.parametrize("schedule", [Schedule(groups_per_step=4), Schedule(groups_per_step=4, max_staleness=2)])
def test_a_resumed_run_goes_on_with_it(schedule: Schedule, tmp_path: Path) -> None:
    whole = Ladder()
    expected = levels(whole, 6, tmp_path / "whole", schedule)
    assert len(whole.observed) == len(set(whole.observed)) >= 24
    assert len({key for row in expected for key in row}) > 6  # levels rose on the way

    first, second = Ladder(), Ladder()
    levels(first, 3, tmp_path / "parts", schedule)
    resumed = levels(second, 6, tmp_path / "parts", schedule, resume=True)
    assert sorted(second.observed) == sorted(set(second.observed))
    assert set(range(24)) <= set(second.observed)
    assert second.observed[: len(first.observed)] == first.observed
    for index, level in first.asked.items():  # what was asked for stays what it was
        assert second.asked[index] == level
    if schedule.max_staleness == 0:
        assert resumed == expected


def test_evaluations_are_not_observed(tmp_path: Path) -> None:
    groups, fixed = Ladder(), Ladder()

    async def program() -> Any:
        rollout = RolloutSettings(SamplingParams(max_tokens=4))
        return await train_rl(
            SimulatedBackend(SamplerModel()),
            groups=groups,
            steps=2,
            schedule=Schedule(groups_per_step=2),
            settings=RLSettings(rollout=rollout, shuffle=False, drop_constant_groups=False),
            evaluations=[group_evaluation("fixed", [fixed[index] for index in range(3)], rollout, every=1)],
        )

    result = simulate(program, horizon=1e6).unwrap()
    assert fixed.observed == []
    assert len(groups.observed) == 4
    assert result.evaluations[0].metrics == {
        "all/level": 0.0,
        "all/reward/total": 0.5,
        "level_0/level": 0.0,
        "level_0/reward/total": 0.5,
    }
