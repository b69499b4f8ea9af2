"""Which checkpoints a run keeps: the newest, every so many steps, the best by an evaluation however late it comes; and their time to live."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from actors import EvaluatedPolicy, Evaluation, RunResult, RunSettings, StopRequest, train_supervised
from engine.backends.errors import UnusableState
from engine.backends.simulated import SimulatedBackend
from engine.runtime.testing import every_cancellation, simulate
from engine.storage import Best, list_checkpoints, select_checkpoint
from engine.storage.run_directory import RunDirectoryError
from tests.actors.scenarios import Batches, make_backend

SCORES = {0: 9.0, 1: 5.0, 2: 2.0, 3: 4.0, 4: 3.0, 5: 2.5, 6: 6.0}
"""By version: the best is 2."""


def scoring(seconds: float, every: int = 1) -> Evaluation:
    async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
        await anyio.sleep(seconds)
        return {"score": SCORES[policy._version]}  # type: ignore[attr-defined]

    return Evaluation("held out", run, every=every)


async def train(
    path: Path, *, seconds: float = 0.0, backend: SimulatedBackend | None = None, **options: Any
) -> RunResult:
    run = RunSettings(path, **{"checkpoint_every": 1, "keep_checkpoints": 1, **options})
    return await train_supervised(
        backend or make_backend(), batches=Batches(), run=run, evaluations=[scoring(seconds)], ahead=0
    )


def steps(path: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(path)]


@pytest.mark.parametrize("seconds", [0.0, 0.3, 50.0])
@pytest.mark.parametrize("highest", [True, False])
def test_the_best_checkpoint_survives_however_late_its_evaluation_comes(
    tmp_path: Path, seconds: float, highest: bool
) -> None:
    async def program() -> None:
        await train(tmp_path, seconds=seconds, best=Best("held out/score", highest=highest))

    simulate(program).unwrap()
    best = 6 if highest else 2
    assert steps(tmp_path) == sorted({best, 6})
    assert select_checkpoint(tmp_path, "best").step == best


def test_the_best_survives_crashes_too(tmp_path: Path) -> None:
    number = 0

    async def begin() -> None:
        nonlocal number
        number += 1
        await train(tmp_path / str(number), seconds=7.0, best=Best("held out/score", highest=False))

    for report in every_cancellation(begin, stride=61):
        assert report.error is None
        path = tmp_path / str(number)

        async def go_on(path: Path = path) -> None:
            await train(path, seconds=0.1, best=Best("held out/score", highest=False), resume=True)

        simulate(go_on).unwrap()
        assert (steps(path), select_checkpoint(path, "best").step) == ([2, 6], 2)


def test_every_so_many_steps_one_is_kept(tmp_path: Path) -> None:
    simulate(lambda: train(tmp_path, keep_every=2)).unwrap()
    assert steps(tmp_path) == [2, 4, 6]


# --- time to live


class Noting(SimulatedBackend):
    lives: list[float | None]

    def save_state(self, directory: Path, *, time_to_live: float | None = None) -> Any:
        self.lives.append(time_to_live)
        return super().save_state(directory, time_to_live=time_to_live)


def noting() -> Noting:
    backend = Noting()
    backend.lives = []
    return backend


def test_what_may_go_has_a_time_to_live_and_what_stays_has_none(tmp_path: Path) -> None:
    backend = noting()
    simulate(lambda: train(tmp_path / "a", backend=backend, time_to_live=60.0, keep_every=4)).unwrap()
    assert backend.lives == [60.0, 60.0, 60.0, None, 60.0, None]
    backend = noting()
    simulate(lambda: train(tmp_path / "b", backend=backend)).unwrap()
    assert backend.lives == [None] * 6


@pytest.mark.parametrize("every", [1, 2])
def test_the_last_checkpoint_of_a_stopped_run_stays(tmp_path: Path, every: int) -> None:
    backend, stop = noting(), StopRequest()

    class Stopping:
        def step(self, row: Mapping[str, float]) -> None:
            if row["step"] == 2:
                stop()

        def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None: ...

        def note(self, text: str) -> None: ...

    async def program() -> RunResult:
        run = RunSettings(tmp_path, checkpoint_every=every, time_to_live=60.0)
        return await train_supervised(backend, batches=Batches(), run=run, stop=stop, observers=[Stopping()], ahead=0)

    result = simulate(program).unwrap()
    assert result.ending == "stopped"
    assert select_checkpoint(tmp_path).step == result.version
    assert backend.lives[-1] is None
    assert set(backend.lives[:-1]) == {60.0}


def test_a_state_past_its_time_cannot_be_loaded(tmp_path: Path) -> None:
    async def program() -> None:
        backend = SimulatedBackend()
        await backend.save_state(tmp_path, time_to_live=60.0).result()
        await anyio.sleep(59.0)
        await backend.load_state(tmp_path).result()
        await anyio.sleep(2.0)
        with pytest.raises(UnusableState, match="its time to live is over"):
            await backend.load_state(tmp_path).result()

    simulate(program).unwrap()


def test_a_backend_that_has_no_time_to_live_refuses_before_the_run(tmp_path: Path) -> None:
    import attrs

    backend = make_backend()
    backend.capabilities = attrs.evolve(backend.capabilities, time_to_live=False)
    with pytest.raises(ValueError, match="'simulated' keeps checkpoints until they are deleted"):
        simulate(lambda: train(tmp_path, backend=backend, time_to_live=60.0)).unwrap()
    with pytest.raises(RunDirectoryError):
        list_checkpoints(tmp_path)
