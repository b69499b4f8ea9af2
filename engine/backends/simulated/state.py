"""Saved states of the simulated backend: one JSON file with a checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine.backends.errors import UnusableState

_FILE = "simulated.json"
_FORMAT = 1


def write(directory: Path, kind: str, content: dict[str, Any]) -> None:
    """Writes `content` into the existing `directory`."""
    body = json.dumps({"format": _FORMAT, "kind": kind, **content}, sort_keys=True)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    (directory / _FILE).write_text(f"{checksum}\n{body}\n")


def read(directory: Path, kind: str) -> dict[str, Any]:
    """What `write` wrote. Raises UnusableState, saying what is wrong."""
    path = directory / _FILE
    try:
        checksum, body, *_ = [*path.read_text().split("\n"), ""]
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableState(f"{path}: cannot be read: {error}") from error
    if hashlib.sha256(body.encode()).hexdigest() != checksum:
        raise UnusableState(f"{path}: damaged or incomplete: its checksum does not match")
    content: dict[str, Any] = json.loads(body)
    if content["format"] != _FORMAT or content["kind"] != kind:
        raise UnusableState(
            f"{path}: holds a {content['kind']} of format {content['format']}; wanted a {kind} of format {_FORMAT}"
        )
    return content
