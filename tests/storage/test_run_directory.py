"""The run directory: its lock, its lines, and what a rewind keeps."""

from __future__ import annotations

import errno
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.storage import RunDirectory, RunDirectoryError
from engine.storage import run_directory as module
from engine.storage.files import DamagedFile, append_lines, keep_lines, read_lines


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "name": "naïve ✓"}, {"step": 1, "nested": {"a": [1, 2.5, None]}}]
    append_lines(tmp_path / "a.jsonl", rows[:1])
    append_lines(tmp_path / "a.jsonl", rows[1:], durable=True)
    append_lines(tmp_path / "a.jsonl", [])
    assert read_lines(tmp_path / "a.jsonl") == rows
    assert read_lines(tmp_path / "missing.jsonl") == []


def test_what_json_lacks_becomes_null_or_plain(tmp_path: Path) -> None:
    row = {
        "nan": float("nan"),
        "inf": [1.0, float("-inf")],
        "numpy": np.float32(0.5),
        "array": np.arange(3),
        "path": Path("x"),
        "nan32": np.float32("nan"),
    }
    append_lines(tmp_path / "a.jsonl", [row])
    (read,) = read_lines(tmp_path / "a.jsonl")
    assert read == {"nan": None, "inf": [1.0, None], "numpy": 0.5, "array": [0, 1, 2], "path": "x", "nan32": None}


@pytest.mark.parametrize("torn", [b"{", b'{"step": 2', b'{"step": 2}', b"\xff\x00"])
def test_torn_last_line_is_left_out_and_then_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"step": 0}, {"step": 1}])
    with path.open("ab") as file:
        file.write(torn)
    assert read_lines(path) == [{"step": 0}, {"step": 1}]
    keep_lines(path, lambda row: True)
    append_lines(path, [{"step": 2}])
    assert read_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("damage", ["{", "[1]", "7", ""])
def test_damage_within_a_file_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"step": 0}}\n{damage}\n{{"step": 2}}\n')
    with pytest.raises(DamagedFile, match=r"a\.jsonl, line 2: not a JSON object"):
        read_lines(tmp_path / "a.jsonl")


def test_a_rewind_keeps_what_the_checkpoint_had(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        for step in range(5):
            run.append("metrics.jsonl", [{"step": step}])
            run.append("samples.jsonl", [{"step": step, "member": member} for member in range(2)])
            run.append("events.jsonl", [{"event": "trained", "step": step}])
            run.append("evaluations.jsonl", [{"step": step, "name": name, "metrics": {}} for name in ("a", "b")])
            run.append("checkpoints.jsonl", [{"step": step + 1, "path": ""}])
        run.rewind(3, [(2, "b"), (3, "a")])
        assert [row["step"] for row in run.read("metrics.jsonl")] == [0, 1, 2]
        assert [row["step"] for row in run.read("samples.jsonl")] == [0, 0, 1, 1, 2, 2]
        assert [row["step"] for row in run.read("checkpoints.jsonl")] == [1, 2, 3]
        assert len(run.read("events.jsonl")) == 5
        evaluations = [(row["step"], row["name"]) for row in run.read("evaluations.jsonl")]
        assert evaluations == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (3, "b")]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "events.jsonl", "evaluations.jsonl", "samples.jsonl", "checkpoints.jsonl"]
)
def test_any_of_its_files_makes_it_a_run(tmp_path: Path, name: str) -> None:
    """An evaluation of the untrained policy is written before the first step."""
    with RunDirectory(tmp_path) as run:
        assert not run.holds_run
        run.append(name, [{"step": 0}])
        assert run.holds_run
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        RunDirectory(tmp_path)
    RunDirectory(tmp_path, resume=True).close()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with RunDirectory(tmp_path), pytest.raises(RunDirectoryError, match="in use by another process"):
        RunDirectory(tmp_path)
    with RunDirectory(tmp_path):
        pass


def test_unusable_paths_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be used as a run directory") as caught:
        RunDirectory(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)

    class Full(FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "FileIO", Full)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        RunDirectory(tmp_path / "new")
    monkeypatch.undo()
    RunDirectory(tmp_path / "new").close()


def test_config_is_kept_by_a_resumed_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_config({"steps": 3})
        run.write_config({"steps": 4})
        assert '"steps": 3' in (tmp_path / "config.json").read_text()
