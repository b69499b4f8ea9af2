"""`python -m recipes.mirror`: what it says, and that a recipe keeps a copy by a flag."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from actors import Schedule
from engine.storage.run_directory import METRICS
from recipes import mirror, rl_loop


def command(*args: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "recipes.mirror", *args], check=False, capture_output=True, text=True, timeout=60
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()[0]


@pytest.mark.local
def test_a_run_is_copied_by_a_flag_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    config = rl_loop.Config(
        steps=1,
        schedule=Schedule(1),
        group_size=2,
        warm_up=0,
        evaluation_problems=1,
        run_dir=tmp_path / "run",
        mirror=str(tmp_path / "copy"),
    )
    anyio.run(rl_loop.run, config)
    assert "the end of the run copied to" in capsys.readouterr().out
    mirror.run(mirror.Config(at=str(tmp_path / "copy"), pull=tmp_path / "back"))
    assert (tmp_path / "back" / METRICS).read_text() == (tmp_path / "run" / METRICS).read_text()
    assert "--resume --run-dir" in capsys.readouterr().out


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    for args, code, said in (
        (["--at", str(tmp_path)], 2, "mirror: either --push or --pull is wanted"),
        (["--at", str(tmp_path), "--push", str(tmp_path / "x")], 1, f"mirror: {tmp_path}/x holds no run to be copied"),
        (["--at", str(tmp_path), "--pull", str(tmp_path / "y")], 1, f"mirror: {tmp_path} holds no run"),
    ):
        assert command(*args) == (code, said)
