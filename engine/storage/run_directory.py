"""A run's directory: what it holds, and who may write to it.

config.json         the resolved configuration
metrics.jsonl       one line a step
evaluations.jsonl   one line an evaluation
checkpoints.jsonl   one line a finished checkpoint; the checkpoints themselves lie in checkpoints/
discarded.jsonl     weights on a server that no checkpoint here names any more and that are to be deleted there; there while there are any
events.jsonl        the journal: admissions, completions, trained tickets, resumptions
samples.jsonl       what was asked and answered, a few groups a step
trace.json          the timeline, for Perfetto
report.html         the run at a glance
run.lock            held by the process that writes
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.storage.files import DamagedFile, append_lines, keep_lines, read_lines, write_atomically

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
EVENTS = "events.jsonl"
SAMPLES = "samples.jsonl"
CONFIG = "config.json"
TRACE = "trace.json"


class RunDirectoryError(Exception):
    """The directory cannot be used as asked; the message says what to do."""


class RunDirectory:
    """An open run directory, held by this process alone. A context manager: leaving it gives the lock back."""

    def __init__(self, path: Path | str, *, resume: bool = False) -> None:
        """Opens or makes the directory and takes its lock.

        Raises RunDirectoryError when another process holds it, or when it holds a run and `resume` is not set.
        """
        self.path = Path(path)
        self.resume = resume
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: cannot be used as a run directory ({error.strerror})") from error
        if self.holds_run and not resume:
            self.close()
            raise RunDirectoryError(
                f"{self.path} already holds a run: pass --resume to go on with it, or choose another directory"
            )

    @property
    def holds_run(self) -> bool:
        """Whether a run has written here before."""
        return any((self.path / name).exists() for name in (METRICS, CHECKPOINTS, EVENTS, EVALUATIONS, SAMPLES))

    def _take_lock(self) -> FileIO:
        lock = FileIO(self.path / "run.lock", "a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip() or "unknown"
            lock.close()
            raise RunDirectoryError(
                f"{self.path} is in use by another process (pid {holder}): wait for it, or choose another directory"
            ) from None
        try:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n".encode())
        except OSError:
            lock.close()
            raise
        return lock

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, unless the run has one: a resumed run keeps its own."""
        if not (self.path / CONFIG).exists():
            write_atomically(self.path / CONFIG, json.dumps(config, indent=2, default=str) + "\n")

    def append(self, name: str, rows: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
        """Appends lines to one of the files."""
        append_lines(self.path / name, rows, durable=durable)

    def make_durable(self, names: Iterable[str]) -> None:
        """Brings what was appended to these files to the disk itself."""
        for name in names:
            if (self.path / name).exists():
                descriptor = os.open(self.path / name, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def read(self, name: str) -> list[dict[str, Any]]:
        """The complete lines of one of the files. Raises RunDirectoryError where one of them is damaged."""
        with _told_apart():
            return read_lines(self.path / name)

    def rewind(self, version: int, pending: Iterable[tuple[int, str]] = ()) -> None:
        """Drops what was written after the checkpoint at `version` optimizer steps, and the evaluations that were `pending` (version, name) then.

        What is dropped will be done and written again, so no step is missing and none is there twice.
        """
        again = set(pending)
        with _told_apart():
            keep_lines(self.path / METRICS, lambda row: row["step"] < version)
            keep_lines(self.path / SAMPLES, lambda row: row["step"] < version)
            keep_lines(
                self.path / EVALUATIONS, lambda row: row["step"] <= version and (row["step"], row["name"]) not in again
            )
            keep_lines(self.path / CHECKPOINTS, lambda row: row["step"] <= version)
            keep_lines(self.path / EVENTS, lambda _: True)  # a torn last line only: the journal tells all that happened

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _told_apart() -> Iterator[None]:
    """A damaged file is the directory's fault, not the program's."""
    try:
        yield
    except DamagedFile as error:
        raise RunDirectoryError(f"{error}: mend or remove that line, or start a new run in another directory") from None
