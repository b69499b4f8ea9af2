"""The feed: what a step takes, and when it stops waiting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors import RLSettings, RunResult, Schedule, train_rl
from engine.backends import Completion, ModelInput, SampleRequest
from engine.backends.simulated import Draw, SamplerModel, SimulatedBackend
from engine.runtime.testing import schedules
from envs.contracts import Env, GroupBuilder, Observation, Step

SECONDS = [0.1, 10.0, 2.0, 100.0]
"""How long each problem's completions take."""
CONSTANT = 1
"""The problem whose members all get the same reward."""


class TimedEnv:
    def __init__(self, problem: int, member: int) -> None:
        self.problem, self.member = problem, member

    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([self.problem, self.member]))

    async def step(self, completion: Completion) -> Step:
        return Step(0.0 if self.problem == CONSTANT else float(self.member))


class TimedGroup(GroupBuilder):
    def __init__(self, problem: int) -> None:
        self.problem = problem

    async def make_envs(self) -> Sequence[Env]:
        return [TimedEnv(self.problem, member) for member in range(2)]


def timed(request: SampleRequest, sample: int) -> Draw:
    return Draw(np.array([40, 41], np.int32), SECONDS[int(request.prompt.tokens[0])])


def test_a_due_group_that_is_given_back_no_longer_holds_up_those_that_have_finished() -> None:
    async def program() -> RunResult:
        backend = SimulatedBackend(SamplerModel(script=timed))
        problems = [TimedGroup(problem) for problem in range(len(SECONDS))]
        return await train_rl(
            backend,
            groups=problems,
            steps=3,
            schedule=Schedule(groups_per_step=1, max_staleness=1),
            settings=RLSettings(shuffle=False, epochs=1),
        )

    for report in schedules(program, count=20):
        rows = report.unwrap().rows
        # Step 0 trains problem 0. Problem 1 is due in step 1 and keeps problem 2, done after 2 s, waiting until it is filtered after 10 s.
        assert [round(row["time/elapsed"], 1) for row in rows] == [0.1, 10.0, 110.0]
        assert [row["groups/filtered"] for row in rows] == [0, 1, 0]
