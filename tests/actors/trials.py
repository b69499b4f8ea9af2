"""One watched run, its schedule and its surroundings drawn from a seed."""

from __future__ import annotations

import random
from typing import Any

import anyio
import attrs
import trio

from actors import RLSettings, RunResult, SamplerSettings, Schedule, train_rl
from engine.backends.simulated import Failures, Fault, SimulatedBackend
from engine.backends.values import SamplingParams
from engine.runtime.testing import SimulationReport, simulate
from envs.rollout import Retry, RolloutSettings
from tests.actors.harness import (
    MODES,
    Accountant,
    Record,
    Watched,
    nothing_left,
    small_backend,
)

STEPS = 3
SAMPLING = SamplingParams(max_tokens=40)


@attrs.define
class Trial:
    """One run and what it is run with."""

    seed: int
    schedule: Schedule
    dataset: Watched
    backend: SimulatedBackend
    settings: RLSettings
    options: dict[str, Any] = attrs.field(factory=dict)
    steps: int = STEPS
    plan: tuple[Fault, ...] = ()
    accountant: Accountant = attrs.field(factory=Accountant)
    left_at_return: list[str] = attrs.field(factory=list)
    ended_at: float = 0.0

    @property
    def record(self) -> Record:
        return self.dataset.record

    def run(self) -> SimulationReport[RunResult]:
        async def program() -> RunResult:
            trio.lowlevel.add_instrument(self.accountant)
            try:
                return await train_rl(
                    self.backend,
                    groups=self.dataset,
                    steps=self.steps,
                    schedule=self.schedule,
                    settings=self.settings,
                    **self.options,
                )
            finally:  # at the very moment: nothing may need another turn of the loop to end
                self.ended_at = anyio.current_time()
                self.left_at_return = nothing_left(self.backend, self.record)

        with self.accountant.at_work():
            report = simulate(program, seed=self.seed, horizon=1e4, max_steps=60_000)
        assert self.accountant.checks > 0
        assert self.accountant.wrong == []
        assert self.left_at_return == []
        return report


def make_trial(seed: int, mode: str, *, failures: Failures | None = None, **settings: Any) -> Trial:
    random_ = random.Random(seed * 1000 + sum(map(ord, mode)))
    turns = random_.choice([1, 1, 3])
    dataset = Watched(turns=turns, single_turn=turns == 1 and random_.random() < 0.5, problems=random_.choice([3, 16]))
    backend = small_backend(seed, failures=failures, slots=random_.choice([None, 3]))
    settings.setdefault("rollout", RolloutSettings(SAMPLING, failure=Retry(2)))
    settings.setdefault(
        "sampler", SamplerSettings(slots=random_.choice([None, 2, 5]), deadline=100.0, backoff=0.1, attempts=6)
    )
    return Trial(seed, MODES[mode], dataset, backend, RLSettings(seed=seed, **settings))


def always_breaks_some(problem: int, where: str, attempt: int) -> bool:
    return problem % 4 == 0 and where == ("reset", "step", "make_envs", "group_rewards", "cleanup")[problem // 4 % 5]
