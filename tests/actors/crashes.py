"""Crashes inside file operations: the process is dead from the n-th one on, and its last write may be torn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_WRITING = os.O_WRONLY | os.O_RDWR


class Crash(BaseException):
    """The process died here. Nothing it would have done afterwards is done."""


class Disk:
    """Counts what is done to files below `root`, and dies at operation number `crash_at` (from 1; None: never)."""

    current: Disk | None = None

    def __init__(self, root: Path, crash_at: int | None = None) -> None:
        self.root, self.crash_at = str(root), crash_at
        self.operations: list[str] = []
        self.dead = False
        self._unsynced: Path | None = None
        """File opened last for writing from its beginning, and not synced."""

    def touch(self, what: str, path: Any) -> None:
        """An operation is about to be done."""
        if self.dead:
            raise Crash(what)
        self.operations.append(f"{what} {os.path.relpath(path, self.root)}")
        if len(self.operations) == self.crash_at:
            self.die(what)

    def die(self, what: str) -> None:
        self.dead = True
        raise Crash(f"{what}, operation {self.crash_at}")

    def tear(self) -> None:
        """After the crash: of the file written last only a part reached the disk."""
        if self._unsynced is not None and self._unsynced.exists():
            with self._unsynced.open("r+b") as file:
                file.truncate(self._unsynced.stat().st_size // 2)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | os.PathLike) and flags & _WRITING and self._below(path):
                self.touch("open", path)
                self._unsynced = None if flags & os.O_APPEND else Path(path)
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate") and self._below(args[0]):
            self.touch(event, args[0])

    def _below(self, path: Any) -> bool:
        # shutil.rmtree names files relative to a directory's descriptor: those belong to the directory being removed.
        return os.fspath(path).startswith(self.root) if not isinstance(path, int) else False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The operations within the block are counted."""
        write, fsync = os.write, os.fsync

        def torn_write(descriptor: int, data: Any) -> int:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if not self._below(path):
                return write(descriptor, data)
            if not self.dead and len(self.operations) + 1 == self.crash_at:
                write(descriptor, bytes(data)[: len(data) // 2])
            self.touch("write", path)
            return write(descriptor, data)

        def counted_fsync(descriptor: int) -> None:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if self._below(path):
                self.touch("fsync", path)
                self._unsynced = None
            fsync(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", torn_write)
            patch.setattr(os, "fsync", counted_fsync)
            Disk.current = self
            try:
                yield
            finally:
                Disk.current = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if Disk.current is not None:
        Disk.current.audit(event, args)


sys.addaudithook(_hook)  # once a process: hooks cannot be removed
