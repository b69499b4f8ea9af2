"""Checkpoints on disk: a directory each, complete or not there, verified before use.

A checkpoint is written under a hidden name, every file's size and digest go into its manifest, then it gets its name in one rename and its line in
checkpoints.jsonl. A crash at any moment leaves the checkpoints before it as they were. Which of them stay is `Keeping`'s to say. Where a checkpoint's weights
lie on a server, they are noted for deletion there (`engine.storage.discarded`) before its directory goes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import attrs

from engine.storage.discarded import Elsewhere, nothing_elsewhere, remove_noting
from engine.storage.files import digest_of, keep_lines, read_lines, sync_directory, write_atomically
from engine.storage.keeping import Best, Keeping
from engine.storage.run_directory import CHECKPOINTS, EVALUATIONS, RunDirectory, RunDirectoryError

MANIFEST = "manifest.json"
BEST = "best.json"
"""Beside the checkpoints: by which measure one of them is the best."""
Which = Literal["latest", "best"] | int
_NAME = re.compile(r"\d{6,}|\.\d{6,}\.partial")
"""Of our own directories; what people put beside them stays."""


@attrs.frozen
class StoredCheckpoint:
    """A checkpoint that lies complete on disk."""

    step: int
    """Optimizer steps it holds."""
    path: Path


class UnusableCheckpoint(Exception):
    """A checkpoint that cannot be trusted: which, and why."""


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(
        self, run: RunDirectory, keeping: Keeping | None = None, elsewhere: Elsewhere = nothing_elsewhere
    ) -> None:
        """`keeping`: which to keep; None keeps all. `elsewhere`: what of them lies on a server."""
        self.run = run
        self.elsewhere = elsewhere
        self.keeping = keeping or Keeping()
        self.directory = run.path / "checkpoints"

    def begin(self, step: int) -> Path:
        """An empty hidden directory for the checkpoint after `step` optimizer steps."""
        partial = self.directory / f".{step:06d}.partial"
        if partial.exists():  # of a crash
            self._remove(partial)
        partial.mkdir(parents=True)
        return partial

    def commit(self, step: int, partial: Path) -> StoredCheckpoint:
        """Makes what was written into `partial` the checkpoint of `step`. Durable when it returns."""
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        manifest = {
            "step": step,
            "files": {
                str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": digest_of(path)}
                for path in files
            },
        }
        for directory in sorted({path.parent for path in files}):
            sync_directory(directory)
        write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1))
        final = self.directory / f"{step:06d}"
        if final.exists():  # left by a run that was rewound to before it
            self._remove(final)
        partial.rename(final)
        sync_directory(self.directory)
        sync_directory(self.run.path)
        self.run.append(CHECKPOINTS, [{"step": step, "path": f"checkpoints/{final.name}"}], durable=True)
        self._note_best()
        return StoredCheckpoint(step, final)

    def newest_first(self) -> Iterator[StoredCheckpoint]:
        """Every checkpoint that was committed, newest first, unverified; those pruned since are among them, at the end."""
        seen = set()
        for row in reversed(self.run.read(CHECKPOINTS)):
            if row["step"] not in seen:
                seen.add(row["step"])
                yield StoredCheckpoint(row["step"], self.run.path / row["path"])

    def verify(self, checkpoint: StoredCheckpoint) -> None:
        """Checks every file against the manifest. Raises UnusableCheckpoint."""
        verify(checkpoint)

    def sweep(self) -> None:
        """Removes halves of checkpoints that a crash left, and whole ones that a rewind dropped from checkpoints.jsonl."""
        if not self.directory.exists():
            return
        listed = {checkpoint.path.name for checkpoint in self.newest_first()}
        for path in self.directory.iterdir():
            if path.name not in listed and _NAME.fullmatch(path.name):
                self._remove(path)

    def prune(self, pending: Collection[tuple[int, str]] = ()) -> None:
        """Removes what is not to be kept. `pending`: (version, name) of evaluations still to come, which may find the best one."""
        existing = {each.step: each.path for each in self.newest_first() if each.path.exists()}
        for step in self.keeping.superfluous(list(existing), self.run.read(EVALUATIONS), pending):
            self._remove(existing[step])

    def delete(self, step: int) -> None:
        """Removes a checkpoint for good. Raises RunDirectoryError where there is none of that step."""
        chosen = select_checkpoint(self.run.path, step)
        keep_lines(self.run.path / CHECKPOINTS, lambda row: row["step"] != step)  # first: what is not listed gets swept
        self._remove(chosen.path)

    def _remove(self, directory: Path) -> None:
        remove_noting(self.run.path, directory, self.elsewhere)

    def _note_best(self) -> None:
        if self.keeping.best is not None:
            said = json.dumps(attrs.asdict(self.keeping.best)) + "\n"
            path = self.directory / BEST
            if not path.exists() or path.read_text(encoding="utf-8") != said:
                write_atomically(path, said)


# ---- from outside: without the run's lock, while it goes on or after


def list_checkpoints(run: Path) -> list[StoredCheckpoint]:
    """A run's checkpoints that are there, oldest first, unverified. Raises RunDirectoryError where the directory holds no run."""
    if not (run / CHECKPOINTS).exists():
        what = "holds no checkpoints" if run.is_dir() else "is no directory"
        raise RunDirectoryError(f"{run} {what}: the directory of a run that has saved one is wanted")
    found = {row["step"]: run / row["path"] for row in read_lines(run / CHECKPOINTS)}
    return [StoredCheckpoint(step, path) for step, path in sorted(found.items()) if path.exists()]


def verify(checkpoint: StoredCheckpoint) -> None:
    """Checks every file against the manifest. Raises UnusableCheckpoint."""
    try:
        manifest = json.loads((checkpoint.path / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            path = checkpoint.path / name
            if path.stat().st_size != facts["bytes"] or digest_of(path) != facts["sha256"]:
                raise UnusableCheckpoint(f"{checkpoint.path}: {name} is damaged")
    except FileNotFoundError as error:
        raise UnusableCheckpoint(f"{checkpoint.path}: {Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UnusableCheckpoint(f"{checkpoint.path}: its manifest cannot be read ({error})") from None


def best_of(run: Path) -> Best | None:
    """By which measure a run keeps its best checkpoint; None: it keeps none."""
    path = run / "checkpoints" / BEST
    return Best(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def select_checkpoint(run: Path, which: Which = "latest") -> StoredCheckpoint:
    """The newest checkpoint of a run, its best one, or that of a step. Raises RunDirectoryError, naming those there are, where there is no such one."""
    there = list_checkpoints(run)
    if not there:
        raise RunDirectoryError(f"{run} has no checkpoint left")
    if which == "latest":
        return there[-1]
    by_step = {checkpoint.step: checkpoint for checkpoint in there}
    if which == "best":
        best = best_of(run)
        if best is None:
            raise RunDirectoryError(
                f"{run} keeps no best checkpoint (it was run without --best-metric); there are {_steps(by_step)}"
            )
        step = best.find(read_lines(run / EVALUATIONS), by_step)
        if step is None:
            raise RunDirectoryError(
                f"{run}: no checkpoint was evaluated by {best.metric!r} yet; there are {_steps(by_step)}"
            )
        return by_step[step]
    if which not in by_step:
        raise RunDirectoryError(f"{run} has no checkpoint of step {which}; there are {_steps(by_step)}")
    return by_step[which]


def _steps(by_step: Collection[int]) -> str:
    return ", ".join(map(str, by_step))
