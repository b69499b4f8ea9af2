"""Same seed, same virtual clock: the same bytes on disk. And every mode once on each event loop, where nothing waits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from actors import (
    Evaluation,
    RLSettings,
    RunResult,
    RunSettings,
    SamplerSettings,
    group_evaluation,
    train_rl,
    train_supervised,
)
from engine.backends import SamplingParams
from engine.backends.simulated import Failures, SamplerModel, SimulatedBackend, TrainerModel
from engine.runtime.testing import simulate
from envs.contracts import Policy
from envs.rollout import RolloutSettings
from tests.actors import scenarios
from tests.actors.harness import MODES, Watched, check_complete, check_directory, nothing_left, small_backend
from tests.actors.scenarios import Batches

SETTINGS = RLSettings(
    rollout=RolloutSettings(SamplingParams(max_tokens=20)), sampler=SamplerSettings(slots=4, backoff=0.1), seed=6
)
STEPS = 5


async def slow_evaluation(policy: Policy) -> Mapping[str, float]:
    await anyio.sleep(1.7)
    return {"score": anyio.current_time() % 1.0}


def breaks_sometimes(problem: int, where: str, attempt: int) -> bool:
    return attempt == 1 and where == "step" and problem % 4 == 1


def files_of(mode: str, seed: int, path: Path) -> dict[str, bytes]:
    backend = small_backend(failures=Failures(rates={"sample": 0.1}))
    dataset = Watched(turns=2 if "turn" in mode else 1, breaks=breaks_sometimes)

    async def program() -> RunResult:
        return await train_rl(
            backend,
            groups=dataset,
            steps=STEPS,
            schedule=MODES[mode],
            settings=SETTINGS,
            evaluations=[Evaluation("slow", slow_evaluation, every=2)],
            run=RunSettings(path, checkpoint_every=2),
        )

    simulate(program, seed=seed).unwrap()
    return {file.name: file.read_bytes() for file in path.glob("*.json*")}


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_bytes(mode: str, tmp_path: Path) -> None:
    first, second = files_of(mode, 1, tmp_path / "a"), files_of(mode, 1, tmp_path / "b")
    assert set(first) >= {"metrics.jsonl", "events.jsonl", "evaluations.jsonl", "samples.jsonl", "checkpoints.jsonl"}
    assert first == second
    assert len(first["metrics.jsonl"]) > 1000
    assert len(first["events.jsonl"].splitlines()) > 3 * STEPS
    if "async" in mode:  # that two schedules can be told apart by their bytes
        assert any(
            files_of(mode, seed, tmp_path / str(seed))["events.jsonl"] != first["events.jsonl"] for seed in (2, 3)
        )


def test_supervised_same_seed_same_bytes(tmp_path: Path) -> None:
    def metrics(path: Path) -> bytes:
        async def program() -> None:
            await train_supervised(scenarios.make_backend(), batches=Batches(), ahead=2, run=RunSettings(path))

        simulate(program, seed=3).unwrap()
        return (path / "metrics.jsonl").read_bytes()

    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_on_both_event_loops(mode: str, tmp_path: Path) -> None:
    """Real files, real threads for them; a backend without latencies."""
    backend = SimulatedBackend(SamplerModel(policy_dependent=True), TrainerModel(), record=True)
    dataset = scenarios.Patterns(size=2, turns=2)
    result = await train_rl(
        backend,
        groups=dataset,
        steps=4,
        schedule=MODES[mode],
        settings=SETTINGS,
        evaluations=[group_evaluation("held out", scenarios.Patterns(problems=3, size=2), SETTINGS.rollout, every=2)],
        run=RunSettings(tmp_path / "run", checkpoint_every=2),
    )
    check_complete(result, backend, MODES[mode], 4)
    check_directory(tmp_path / "run", 4, MODES[mode].groups_per_step)
    assert [report.version for report in result.evaluations] == [0, 2, 4]
    assert backend.live_snapshots == ()
    again = SimulatedBackend(SamplerModel(policy_dependent=True), TrainerModel(), record=True)
    result = await train_rl(
        again,
        groups=dataset,
        steps=6,
        schedule=MODES[mode],
        settings=SETTINGS,
        run=RunSettings(tmp_path / "run", checkpoint_every=2, resume=True),
    )
    check_directory(tmp_path / "run", 6, MODES[mode].groups_per_step)
    assert nothing_left(again, Watched().record) == []


@pytest.mark.anyio
async def test_supervised_on_both_event_loops(tmp_path: Path) -> None:
    backend = SimulatedBackend(SamplerModel(), TrainerModel(), record=True)
    result = await train_supervised(backend, batches=Batches(), ahead=2, run=RunSettings(tmp_path, checkpoint_every=2))
    assert [row["step"] for row in result.rows] == list(range(6))
    assert backend.live_snapshots == ()
