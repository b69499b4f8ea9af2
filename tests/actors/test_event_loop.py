"""The event loop is never held for long by the project's own code, however large a step is.

Measured in CPU time of the loop's thread within one callback, so that a busy machine changes nothing; the garbage collector's time is left out, being
Python's.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from actors import RLSettings, RunSettings, Schedule, train_rl, train_supervised
from engine.backends import Completion, Datum, ModelInput, SamplingParams
from engine.backends.simulated import Constant, SamplerModel, SimulatedBackend, TrainerModel
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings
from tests.actors.scenarios import Batches

LIMIT = 0.05
GROUPS, SIZE = 256, 8


class QuickEnv:
    def __init__(self, problem: int, turns: int) -> None:
        self.prompt = ModelInput.from_tokens([1, 2, 3, problem])
        self.turns = turns

    async def reset(self) -> Observation:
        return Observation(self.prompt)

    async def step(self, completion: Completion) -> Step:
        self.turns -= 1
        reward = float(completion.tokens[0])
        if not self.turns:
            return Step(reward, metrics={"first": reward})
        self.prompt = self.prompt.append(completion.tokens)
        return Step(reward, Observation(self.prompt))


class QuickGroup(GroupBuilder):
    def __init__(self, problem: int, turns: int) -> None:
        self.problem, self.turns = problem, turns
        self.single_turn = turns == 1
        self.tags = ("quick",)

    async def make_envs(self) -> Sequence[Env]:
        return [QuickEnv(self.problem, self.turns) for _ in range(SIZE)]


def longest_callback(program: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> float:
    """The most CPU time that the loop's thread spent in one callback, that is in one task between two awaits."""
    longest = collecting = 0.0
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal longest, collecting
        collecting = 0.0
        before = time.thread_time()
        run(handle)
        longest = max(longest, time.thread_time() - before - collecting)

    def collects(phase: str, info: dict[str, int]) -> None:
        nonlocal collecting
        collecting += time.thread_time() * (-1 if phase == "start" else 1)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    gc.callbacks.append(collects)
    try:
        anyio.run(program, backend="asyncio")
    finally:
        gc.callbacks.remove(collects)
    assert longest > 0
    return longest


@pytest.mark.parametrize("turns", [1, 4])
def test_large_steps_of_reinforcement_learning(turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimulatedBackend(SamplerModel(length=Constant(64)), TrainerModel(), track_weights=False)
    # As many minibatches as keep the backend's own work, which is this process's here, out of the measurement.
    schedule = Schedule(groups_per_step=GROUPS, minibatches=32, max_staleness=1)

    async def program() -> None:
        await train_rl(
            backend,
            groups=[QuickGroup(problem, turns) for problem in range(GROUPS)],
            steps=2 if turns == 1 else 1,
            schedule=schedule,
            settings=RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=64)), advantages="reinforce_pp"),
            run=RunSettings(tmp_path, checkpoint_every=1),
        )

    assert longest_callback(program, monkeypatch) < LIMIT


def test_slow_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Batches):
        def __getitem__(self, index: int) -> list[Datum]:
            end = time.thread_time() + 0.1
            while time.thread_time() < end:
                pass
            return super().__getitem__(index)

    async def program() -> None:
        await train_supervised(SimulatedBackend(), batches=Slow(4), run=RunSettings(tmp_path, checkpoint_every=1))

    assert longest_callback(program, monkeypatch) < LIMIT
