"""A run that is copied while it goes on, and goes on from its copy; on the virtual clock."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from actors import RunSettings, train_supervised
from engine.backends.simulated import SimulatedBackend, TrainerModel
from engine.runtime import simulate
from engine.storage.blobs import FsspecBlobs, open_blobs
from engine.storage.checkpoints import list_checkpoints
from engine.storage.mirror import pull_run
from tests.actors.test_supervised import Batches


class Notes:
    """An observer that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, row: Any) -> None: ...

    def evaluation(self, step: int, name: str, metrics: Any) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(directory: Path, blobs: Any, steps: int, *, resume: bool = False) -> tuple[Any, list[str]]:
    notes = Notes()

    async def program() -> Any:
        return await train_supervised(
            SimulatedBackend(trainer=TrainerModel(per_call=1.0)),
            batches=Batches(8),
            steps=steps,
            run=RunSettings(directory, resume=resume, checkpoint_every=2, mirror=blobs),
            observers=[notes],
        )

    return simulate(program).unwrap(), notes.notes


def test_a_copy_goes_on_on_another_machine(tmp_path: Path) -> None:
    blobs = open_blobs(f"memory://{uuid.uuid4()}")
    whole, _ = run(tmp_path / "whole", None, 7)
    _, notes = run(tmp_path / "first", blobs, 5)
    assert [note for note in notes if "copied" in note][-1].startswith("the end of the run copied to memory://")
    pull_run(blobs, tmp_path / "second")
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "second")] == [2, 4, 5]
    again, _ = run(tmp_path / "second", blobs, 7, resume=True)
    strip = [
        {name: value for name, value in row.items() if not name.startswith(("time/", "progress/", "tokens/per"))}
        for row in again.rows
    ]
    assert [row["step"] for row in strip] == list(range(7))
    assert [row["optim/loss"] for row in strip] == [row["optim/loss"] for row in whole.rows]
    pull_run(blobs, tmp_path / "third")
    assert list_checkpoints(tmp_path / "third")[-1].step == 7


def test_a_store_that_fails_costs_notes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FsspecBlobs, name: str, source: Path) -> None:
        raise PermissionError("the bucket is somebody else's")

    monkeypatch.setattr(FsspecBlobs, "upload", refuse)
    result, notes = run(tmp_path / "run", open_blobs(f"memory://{uuid.uuid4()}"), 5)
    assert (result.ending, result.version) == ("complete", 5)
    failures = [note for note in notes if "could not be copied" in note]
    assert failures[-1].startswith("the end of the run could not be copied to memory://")
    assert "PermissionError: the bucket is somebody else's" in failures[0]
