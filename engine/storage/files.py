"""Files that survive a crash at any moment: whole or not there, and lines that are complete or cut off at the end."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


class DamagedFile(Exception):
    """A file that a crash alone cannot have left so: which, and where in it."""


def write_atomically(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one. Durable when it returns."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes renames and new names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """Appends one JSON object a line, in one write. Numbers that JSON lacks (NaN, infinities) become null."""
    data = "".join(json.dumps(_finite(row), ensure_ascii=False, default=_plain) + "\n" for row in rows).encode()
    if not data:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a file; a last line that a crash cut off is left out. No file: no lines.

    Raises DamagedFile naming file and line when a line *within* the file is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DamagedFile(f"{path}, line {number}: not a JSON object ({error})") from None
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites the file with the lines to keep, atomically; drops a torn last line. No file: nothing happens."""
    if path.exists():
        write_atomically(
            path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read_lines(path) if keep(row))
        )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    item = getattr(value, "tolist", None)  # numpy scalars and arrays
    if item is not None:
        return _finite(item())
    return str(value)
