"""A run to be killed: `python -m tests.actors.killable DIRECTORY MODE [--resume]`. Prints a line a step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import anyio

from actors import RLSettings, RunSettings, Schedule, train_rl
from engine.backends import SamplingParams
from engine.backends.simulated import Exponential, SamplerModel, SimulatedBackend, TrainerModel
from envs.rollout import RolloutSettings
from tests.actors.scenarios import Patterns

STEPS = 20
SCHEDULES = {"sync": Schedule(groups_per_step=2), "async": Schedule(groups_per_step=2, max_staleness=2)}


class Printing:
    """Tells the parent process how far the run is."""

    def step(self, row: Mapping[str, float]) -> None:
        print(int(row["step"]), flush=True)

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


async def main(directory: Path, mode: str, resume: bool) -> None:
    model = SamplerModel(seconds=Exponential(0.004), sec_per_token=0.0002, policy_dependent=True)
    backend = SimulatedBackend(model, TrainerModel(per_call=0.002, save=0.003), seed=3)
    await train_rl(
        backend,
        groups=Patterns(size=2),
        steps=STEPS,
        schedule=SCHEDULES[mode],
        settings=RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=60)), seed=4),
        run=RunSettings(directory, resume=resume, checkpoint_every=2, keep_checkpoints=2),
        observers=[Printing()],
    )


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), sys.argv[2], "--resume" in sys.argv)
