"""After a kill at any moment a resumed run goes on as if nothing had happened: no group lost, none trained twice, the same requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from actors import RunResult
from engine.backends.simulated import SimulatedBackend
from engine.runtime.testing import simulate
from engine.storage.run_directory import CHECKPOINTS
from tests.actors.scenarios import MODES, Patterns, make_backend, run_patterns
from tests.thoroughness import stride

STEPS = 6
MOMENTS = {mode: 3 * number for number, mode in enumerate(MODES)}
"""So that the modes are killed at moments of their own."""


def training_of(backend: SimulatedBackend) -> dict[int, tuple[Any, ...]]:
    """What each step trained on: datum digests in order, by version."""
    return {
        entry.version: backend.log.trained(entry.version)
        for entry in backend.log.training
        if entry.call == "optim_step"
    }


class DiskWatcher(trio.abc.Instrument):
    """Copies the run directory at every `every`-th task step, and whenever there is another checkpoint: what a SIGKILL at that moment would have left."""

    def __init__(self, run: Path, copies: Path, every: int) -> None:
        self.run, self.copies, self.every = run, copies, every
        self.steps = 0
        self.checkpoints = 0
        self.taken: list[Path] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        written = self.run / CHECKPOINTS
        checkpoints = written.stat().st_size if written.exists() else 0
        if self.run.exists() and (self.steps % self.every == 0 or checkpoints != self.checkpoints):
            self.copy()
        self.checkpoints = checkpoints

    def copy(self) -> None:
        target = self.copies / f"{len(self.taken):04d}"
        shutil.copytree(self.run, target)
        self.taken.append(target)


def run_watched(program: Callable[..., Any], *args: Any, watcher: DiskWatcher, seed: int) -> RunResult:
    async def watched() -> Any:
        trio.lowlevel.add_instrument(watcher)
        return await program(*args)

    return simulate(watched, seed=seed).unwrap()


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_resumed_run_equals_uninterrupted_run(mode: str, turns: int, tmp_path: Path) -> None:
    schedule = MODES[mode]
    dataset = Patterns(turns=turns)
    backend = make_backend()

    async def uninterrupted() -> RunResult:
        return await run_patterns(backend, schedule, steps=STEPS, dataset=dataset, directory=tmp_path / "run")

    watcher = DiskWatcher(tmp_path / "run", tmp_path / "copies", every=stride(100 * turns + MOMENTS[mode], 37))
    result = run_watched(uninterrupted, watcher=watcher, seed=1)
    wanted = training_of(backend)
    assert sorted(wanted) == list(range(STEPS))
    assert len(watcher.taken) > 5
    watcher.copy()  # a run that had just finished

    resumed_from = set()
    for copy in watcher.taken:
        again = make_backend()

        async def resumed(copy: Path = copy, again: SimulatedBackend = again) -> RunResult:
            return await run_patterns(again, schedule, steps=STEPS, dataset=dataset, directory=copy, resume=True)

        outcome = simulate(resumed, seed=5).unwrap()
        redone = training_of(again)
        resumed_from.add(min(redone, default=STEPS))
        assert redone == {step: data for step, data in wanted.items() if step in redone}, copy.name
        assert sorted(redone) == list(range(min(redone, default=STEPS), STEPS))
        assert [row["step"] for row in outcome.rows] == list(range(STEPS))
        assert [row["env/all/reward/total"] for row in outcome.rows] == [
            row["env/all/reward/total"] for row in result.rows
        ]
        assert set(again.log.sampling) <= set(backend.log.sampling)
        assert outcome.version == STEPS
    assert resumed_from >= {0, 2, 4, 6}
