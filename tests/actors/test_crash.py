"""Crashes: inside file operations, of checkpoints that are damaged, during a resume, and by a real SIGKILL.

Moments between file operations are in test_resume.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from actors import RunResult, Schedule
from engine.backends.simulated import SimulatedBackend
from engine.runtime.testing import simulate
from engine.storage import RunDirectory, RunDirectoryError
from tests.actors.crashes import Crash, Disk
from tests.actors.harness import check_directory, training_of
from tests.actors.killable import STEPS as KILLABLE_STEPS
from tests.actors.scenarios import Patterns, make_backend, run_patterns
from tests.thoroughness import stride

STEPS = 4
GROUPS = 2
DATASET = Patterns(size=2)
MODES = {
    "sync": Schedule(groups_per_step=GROUPS),
    "async": Schedule(groups_per_step=GROUPS, max_staleness=1),
    "turn": Schedule(groups_per_step=GROUPS, max_staleness=2, minibatches=2, pin="turn"),
}


@attrs.frozen
class Notes:
    """An observer that keeps the lines for people."""

    texts: list[str] = attrs.field(factory=list)

    def step(self, row: Any) -> None: ...

    def evaluation(self, step: int, name: str, metrics: Any) -> None: ...

    def note(self, text: str) -> None:
        self.texts.append(text)


def run(
    path: Path, mode: str = "async", *, resume: bool = False, seed: int = 0, notes: Notes | None = None, **options: Any
) -> tuple[RunResult, SimulatedBackend]:
    backend = make_backend()
    options = {"steps": STEPS, "schedule": MODES[mode], "checkpoint_every": 1, "dataset": DATASET, **options}

    async def program() -> RunResult:
        return await run_patterns(
            backend, directory=path, resume=resume, observers=[notes] if notes is not None else [], **options
        )

    return simulate(program, seed=seed, horizon=1e5).unwrap(), backend


def check_resumed(path: Path, mode: str, wanted: dict[int, Any], seed: int = 3) -> int:
    """Resumes, compares, and gives the step at which it went on."""
    result, backend = run(path, mode, resume=True, seed=seed)
    assert result.ending == "complete"
    redone = training_of(backend)
    assert redone == {step: data for step, data in wanted.items() if step in redone}
    check_directory(path, STEPS, GROUPS)
    return min(redone, default=STEPS)


@pytest.mark.parametrize("mode", MODES)
def test_crash_inside_every_file_operation(mode: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "whole")
    with disk.installed():
        _, backend = run(tmp_path / "whole", mode)
    wanted = training_of(backend)
    count = len(disk.operations)
    assert count > 100
    assert {operation.split()[0] for operation in disk.operations} >= {
        "open",
        "write",
        "fsync",
        "os.rename",
        "os.rmdir",
    }
    went_on_at = set()
    # Odd, so that every other crash leaves a torn write.
    for crash_at in range(1, count + 1, stride(11, 5) if mode == "async" else 17):
        path = tmp_path / "run"
        disk = Disk(path, crash_at)
        with disk.installed(), pytest.raises(BaseException) as caught:
            run(path, mode)
        assert disk.dead, caught.value
        assert isinstance(caught.value, Crash) or not isinstance(caught.value, Exception)
        if crash_at % 2:
            disk.tear()
        went_on_at.add(check_resumed(path, mode, wanted))
        shutil.rmtree(path)
    assert went_on_at >= set(range(STEPS))


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    """A run directory as a crash after step 3's metrics left it, and what the whole run would have trained."""
    whole = tmp_path_factory.mktemp("whole")
    disk = Disk(whole / "run")
    with disk.installed():
        _, backend = run(whole / "run")
    metrics = [index for index, name in enumerate(disk.operations, 1) if name == "write metrics.jsonl"]
    path = tmp_path_factory.mktemp("crashed") / "run"
    with Disk(path, metrics[3]).installed(), pytest.raises(Crash):
        run(path)
    return path, training_of(backend)


def copied(crashed: tuple[Path, dict[int, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "run"
    shutil.copytree(crashed[0], path)
    return path


def test_crash_during_the_resume_itself(crashed: tuple[Path, dict[int, Any]], tmp_path: Path) -> None:
    """Restoring and rewinding can die at any operation, again and again."""
    path = copied(crashed, tmp_path)
    disk = Disk(path)
    with disk.installed():
        run(path, resume=True)
    first_step = next(index for index, name in enumerate(disk.operations) if name == "write metrics.jsonl")
    assert "os.rename .metrics.jsonl.partial" in disk.operations[:first_step]
    for crash_at in range(1, first_step + 4, stride(6, 2)):
        shutil.rmtree(path)
        copied(crashed, tmp_path)
        for moment in (crash_at, crash_at + 1):
            disk = Disk(path, moment)
            with disk.installed(), pytest.raises(Crash):
                run(path, resume=True)
            disk.tear()
        assert check_resumed(path, "async", crashed[1]) >= 2


def damage(checkpoint: Path, how: str) -> None:
    state = next(checkpoint.glob("trainer/*"))
    if how == "cut short":
        os.truncate(state, 5)
    elif how == "a bit flipped":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    elif how == "file missing":
        (checkpoint / "work.json").unlink()
    elif how == "manifest damaged":
        (checkpoint / "manifest.json").write_text("{")
    elif how == "manifest of another shape":
        (checkpoint / "manifest.json").write_text("[]")
    elif how == "directory missing":
        shutil.rmtree(checkpoint)
    elif how == "consistent but unreadable":
        rewrite(checkpoint, "work.json", b"{}")
    elif how == "a backend's state of another kind":
        rewrite(checkpoint, str(state.relative_to(checkpoint)), b"nonsense")


def rewrite(checkpoint: Path, name: str, content: bytes) -> None:
    """Replaces a file, manifest included."""
    import hashlib

    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


HOWS = [
    "cut short",
    "a bit flipped",
    "file missing",
    "manifest damaged",
    "manifest of another shape",
    "directory missing",
    "consistent but unreadable",
    "a backend's state of another kind",
]


@pytest.mark.parametrize("how", HOWS)
def test_damaged_newest_checkpoint_falls_back_and_says_so(
    how: str, crashed: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
    path = copied(crashed, tmp_path)
    checkpoints = sorted((path / "checkpoints").glob("0*"))
    damage(checkpoints[-1], how)
    notes = Notes()
    _, backend = run(path, resume=True, notes=notes)
    newest, before = int(checkpoints[-1].name), int(checkpoints[-2].name)
    assert notes.texts[0].startswith(f"checkpoint {newest} cannot be used (")
    assert "trying the one before" in notes.texts[0]
    assert notes.texts[1].startswith(f"resumed after step {before}")
    redone = training_of(backend)
    assert min(redone) == before
    assert redone == {step: data for step, data in crashed[1].items() if step in redone}
    assert backend.live_snapshots == ()
    check_directory(path, STEPS, GROUPS)


def test_nothing_usable_is_a_clear_error_and_harms_nothing(
    crashed: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
    path = copied(crashed, tmp_path)
    for checkpoint in (path / "checkpoints").glob("0*"):
        damage(checkpoint, "cut short")
    metrics = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"none of its \d checkpoints can be used; start a new run in another"):
        run(path, resume=True)
    assert (path / "metrics.jsonl").read_bytes() == metrics
    with RunDirectory(path, resume=True):  # the lock was given back
        pass


def test_damaged_line_within_a_file_is_a_clear_error(crashed: tuple[Path, dict[int, Any]], tmp_path: Path) -> None:
    path = copied(crashed, tmp_path)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text(lines[0][:20] + "\n" + "".join(lines[1:]))
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl, line 1"):
        run(path, resume=True)


CHANGES = {
    "groups_per_step": {"schedule": Schedule(groups_per_step=3, max_staleness=1)},
    "max_staleness": {"schedule": Schedule(groups_per_step=2, max_staleness=2)},
    "pin": {"schedule": Schedule(groups_per_step=2, max_staleness=1, pin="turn")},
    "problems": {"dataset": Patterns(problems=65, size=2)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_resume_with_changed_settings_is_refused(
    change: str, crashed: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
    path = copied(crashed, tmp_path)
    before = sorted((file.name, file.read_bytes()) for file in path.glob("*.jsonl"))
    with pytest.raises(
        RunDirectoryError, match=f"a resumed run keeps its settings, but {change} was .*, now "
    ) as caught:
        run(path, resume=True, **CHANGES[change])
    assert "\n" not in str(caught.value)
    assert sorted((file.name, file.read_bytes()) for file in path.glob("*.jsonl")) == before
    assert check_resumed(path, "async", crashed[1]) > 0  # with the old settings it goes on


def test_a_longer_run_may_be_resumed(crashed: tuple[Path, dict[int, Any]], tmp_path: Path) -> None:
    path = copied(crashed, tmp_path)
    result, _ = run(path, resume=True, steps=STEPS + 2)
    assert result.version == STEPS + 2
    check_directory(path, STEPS + 2, GROUPS)


def test_directory_that_holds_a_run_is_refused_without_resume(
    crashed: tuple[Path, dict[int, Any]], tmp_path: Path
) -> None:
    path = copied(crashed, tmp_path)
    with pytest.raises(
        RunDirectoryError, match="already holds a run: pass --resume to go on with it, or choose another"
    ):
        run(path)


# --- real processes


def start(path: Path, mode: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.actors.killable", str(path), mode, *options],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_real_kills_at_random_moments(mode: str, tmp_path: Path) -> None:
    random_ = random.Random(mode)
    path = tmp_path / "run"
    kills = 0
    options: tuple[str, ...] = ()
    for _ in range(3):
        with start(path, mode, *options) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if random_.random() < 0.3 or int(line) > KILLABLE_STEPS - 4:
                    process.send_signal(signal.SIGKILL)
                    break
            process.communicate()
        kills += process.returncode == -signal.SIGKILL
        options = ("--resume",)
    assert kills >= 2
    with start(path, mode, "--resume") as process:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    check_directory(path, KILLABLE_STEPS, GROUPS)


def test_second_process_on_the_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    with start(tmp_path / "run", "sync") as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.send_signal(signal.SIGSTOP)  # it holds the directory as long as it lives
        with pytest.raises(RunDirectoryError) as caught:
            RunDirectory(tmp_path / "run", resume=True)
        assert str(caught.value) == (
            f"{tmp_path / 'run'} is in use by another process (pid {first.pid}): wait for it, or choose another directory"
        )
        with start(tmp_path / "run", "sync", "--resume") as second:
            _, errors = second.communicate()
            assert second.returncode == 1
            assert errors.rstrip().splitlines()[-1].endswith(str(caught.value))
        first.send_signal(signal.SIGKILL)
        first.communicate()
    RunDirectory(tmp_path / "run", resume=True).close()  # what a killed process held is free
