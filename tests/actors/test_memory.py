"""Memory follows what is in flight, not what has passed."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Mapping

import pytest

from actors import Evaluation, RLSettings, RunResult, Schedule, train_rl, train_supervised
from engine.backends import SamplingParams
from engine.backends.simulated import LogNormal, SamplerModel, SimulatedBackend, TrainerModel
from engine.runtime.testing import simulate
from envs.contracts import Policy
from envs.rollout import RolloutSettings
from tests.actors.scenarios import Batches, Patterns
from tests.thoroughness import THOROUGH

STEPS = 120 if not THOROUGH else 300
EARLY, LATE = range(40, 45), range(STEPS - 5, STEPS)
"""Steps at which the heap is measured; what is in flight differs, so the least of each counts."""


def rows(result: RunResult) -> float:
    """Bytes that a step leaves by design: its row of metrics, which is kept where there is no run directory."""
    row = result.rows[-1]
    return sys.getsizeof(row) + sum(sys.getsizeof(name) + sys.getsizeof(value) for name, value in row.items())


class Meter:
    """An observer that measures the heap at some early and some late steps."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def step(self, row: Mapping[str, float]) -> None:
        step = int(row["step"])
        if step in EARLY or step in LATE:
            gc.collect()
            self.bytes[step] = tracemalloc.get_traced_memory()[0]

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def growth(self) -> float:
        """Bytes a step."""
        early, late = (min(self.bytes[step] for step in steps) for steps in (EARLY, LATE))
        return (late - early) / (LATE[0] - EARLY[0])


def traced(program: Callable[[], Awaitable[RunResult]]) -> RunResult:
    """The program's result, its memory traced."""
    tracemalloc.start()
    try:
        return simulate(program, seed=1).unwrap()
    finally:
        tracemalloc.stop()


def backend() -> SimulatedBackend:
    model = SamplerModel(seconds=LogNormal(mean=0.5, sigma=1.0, maximum=5.0), sec_per_token=0.01)
    return SimulatedBackend(model, TrainerModel(per_call=0.1), seed=1)


async def nothing(policy: Policy) -> Mapping[str, float]:
    return {"score": 0.0}


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(groups_per_step=2),
        Schedule(groups_per_step=2, minibatches=2, max_staleness=2),
        Schedule(groups_per_step=2, max_staleness=1, pin="turn"),
    ],
    ids=["sync", "async", "turn"],
)
def test_reinforcement_learning(schedule: Schedule) -> None:
    meter = Meter()
    settings = RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=300)), seed=1)

    async def program() -> RunResult:
        return await train_rl(
            backend(),
            groups=Patterns(problems=8, size=2, turns=2),
            steps=STEPS,
            schedule=schedule,
            settings=settings,
            observers=[meter],
            evaluations=[Evaluation("often", nothing, every=10)],
        )

    result = traced(program)
    step = sum(row["tokens/trained"] for row in result.rows) / STEPS * (4 + 4 + 4 * 4)
    assert step > 4_000  # bytes of a step's tokens, logprobs and datums alone, were they kept
    assert meter.growth() < 1000 + rows(result)


def test_supervised_learning() -> None:
    meter = Meter()

    async def program() -> RunResult:
        return await train_supervised(backend(), batches=Batches(7, 8), steps=STEPS, ahead=2, observers=[meter])

    result = traced(program)
    assert meter.growth() < 1000 + rows(result)
