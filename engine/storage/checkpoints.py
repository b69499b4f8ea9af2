"""Checkpoints on disk: a directory each, complete or not there, verified before use.

A checkpoint is written under a hidden name, every file's size and digest go into its manifest, then it gets its name in one rename and its line in
checkpoints.jsonl. A crash at any moment leaves the checkpoints before it as they were.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs

from engine.storage.files import digest_of, sync_directory, write_atomically
from engine.storage.run_directory import CHECKPOINTS, RunDirectory

MANIFEST = "manifest.json"
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

    def __init__(self, run: RunDirectory, keep_last: int | None = None) -> None:
        """`keep_last`: how many of the newest to keep; None keeps all."""
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 (or None for all), got {keep_last}")
        self.run = run
        self.keep_last = keep_last
        self.directory = run.path / "checkpoints"

    def begin(self, step: int) -> Path:
        """An empty hidden directory for the checkpoint after `step` optimizer steps."""
        partial = self.directory / f".{step:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
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
            shutil.rmtree(final)
        partial.rename(final)
        sync_directory(self.directory)
        sync_directory(self.run.path)
        self.run.append(CHECKPOINTS, [{"step": step, "path": f"checkpoints/{final.name}"}], durable=True)
        self._prune()
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

    def sweep(self) -> None:
        """Removes halves of checkpoints that a crash left, and whole ones that a rewind dropped from checkpoints.jsonl."""
        if not self.directory.exists():
            return
        listed = {checkpoint.path.name for checkpoint in self.newest_first()}
        for path in self.directory.iterdir():
            if path.name not in listed and _NAME.fullmatch(path.name):
                shutil.rmtree(path)

    def _prune(self) -> None:
        if self.keep_last is None:
            return
        for old in list(self.newest_first())[self.keep_last :]:
            if old.path.exists():
                shutil.rmtree(old.path)
