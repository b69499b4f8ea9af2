"""Small runs on the simulated backend, for many schedules: problems, envs and the programs the tests run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from actors import RLSettings, RunResult, RunSettings, Schedule, train_rl
from engine.backends import AdamParams, Completion, Datum, ModelInput, SamplingParams
from engine.backends.simulated import LogNormal, SamplerModel, SimulatedBackend, TrainerModel
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings


class PatternEnv:
    """Asks `turns` questions; the reward counts even tokens, so that it varies by seed."""

    def __init__(self, problem: int, member: int, turns: int) -> None:
        self.prompt = ModelInput.from_tokens([1, problem, member, 2, 3, 4])
        self.turns = turns

    async def reset(self) -> Observation:
        return Observation(self.prompt)

    async def step(self, completion: Completion) -> Step:
        self.turns -= 1
        reward = float(np.sum(completion.tokens % 2 == 0) / len(completion.tokens))
        if self.turns == 0:
            return Step(reward, metrics={"tokens": float(len(completion.tokens))})
        self.prompt = self.prompt.append(completion.tokens).append([5, 6])
        return Step(0.0, Observation(self.prompt))


class PatternGroup(GroupBuilder):
    """A group of `size` members; keeps count of envs that were made and cleaned up."""

    opened = 0
    """Groups whose envs exist, over all instances of a test."""

    def __init__(self, problem: int, size: int, turns: int) -> None:
        self.problem, self.size, self.turns = problem, size, turns
        self.tags = ("pattern", f"kind_{problem % 3}")

    async def make_envs(self) -> Sequence[Env]:
        PatternGroup.opened += 1
        return [PatternEnv(self.problem, member, self.turns) for member in range(self.size)]

    async def cleanup(self) -> None:
        PatternGroup.opened -= 1


@attrs.frozen
class Patterns:
    """A dataset of pattern problems."""

    problems: int = 64
    size: int = 4
    turns: int = 1

    def __len__(self) -> int:
        return self.problems

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self.problems:
            raise IndexError(index)
        return PatternGroup(index, self.size, self.turns)


MODES = {
    "sync": Schedule(groups_per_step=4),
    "streaming": Schedule(groups_per_step=4, minibatches=2),
    "async": Schedule(groups_per_step=4, max_staleness=2),
    "async-soft": Schedule(groups_per_step=4, max_staleness=1, bound="soft"),
    "async-streaming-turn": Schedule(groups_per_step=4, minibatches=4, max_staleness=3, pin="turn"),
}


def make_backend(seed: int = 0, **options: Any) -> SimulatedBackend:
    """Long-tailed completions, a trainer that takes about as long as a step's sampling; tokens depend on all training so far."""
    options.setdefault("record", True)
    sampler = SamplerModel(
        seconds=LogNormal(mean=0.5, sigma=1.0, maximum=10.0), sec_per_token=0.02, policy_dependent=True
    )
    trainer = TrainerModel(per_call=0.1, per_datum=0.01, optim_step=0.05, snapshot=0.05, save=0.3)
    return SimulatedBackend(sampler, trainer, seed=seed, **options)


SETTINGS = RLSettings(
    rollout=RolloutSettings(SamplingParams(max_tokens=400)), optimizer=AdamParams(learning_rate=1e-3), seed=11
)


async def run_patterns(
    backend: SimulatedBackend,
    schedule: Schedule,
    *,
    steps: int = 6,
    dataset: Patterns | None = None,
    settings: RLSettings = SETTINGS,
    directory: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 2,
    **options: Any,
) -> RunResult:
    """`train_rl` on patterns."""
    run = RunSettings(directory, resume=resume, checkpoint_every=checkpoint_every) if directory is not None else None
    return await train_rl(
        backend, groups=dataset or Patterns(), steps=steps, schedule=schedule, settings=settings, run=run, **options
    )


@attrs.frozen
class Batches:
    """A supervised dataset: batch i holds `size` sequences that no other batch holds."""

    batches: int = 6
    size: int = 2

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> list[Datum]:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        return [self.datum(40 + index, 40 + place) for place in range(self.size)]

    @staticmethod
    def datum(*tokens: int) -> Datum:
        inputs = np.array([33, *tokens], np.int32)
        targets = np.array([*tokens, 34], np.int32)
        return Datum(
            ModelInput.from_tokens(inputs), {"target_tokens": targets, "weights": np.ones(len(targets), np.float32)}
        )
