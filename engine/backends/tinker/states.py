"""States and snapshots on this side: a small file that says where on the server the weights lie, and how to know that it is whole.

The weights stay with the server, under a `tinker://` path. `tinker.json` holds that path, the version and the model, and a digest of all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from engine.backends.errors import UnusableState
from engine.storage.discarded import Remote
from engine.storage.files import write_atomically

FILE = "tinker.json"
_FORMAT = 1

Kind = Literal["training state", "snapshot"]


@attrs.frozen
class SavedState:
    """What a directory says."""

    kind: Kind
    path: str
    """Of the weights (and optimizer) on the server: tinker://<run>/weights/<name>, or .../sampler_weights/<name>."""
    version: int
    """Optimizer steps behind them."""
    model: str
    lora_rank: int
    server: str = ""
    """Where it was saved; for people, since a server may move."""
    expires: str | None = None
    """When the server may delete it, as it was asked to; None: never."""


def write(directory: Path, state: SavedState) -> None:
    """Writes the file into the existing `directory`. Durable when it returns."""
    content = {"format": _FORMAT, **attrs.asdict(state)}
    write_atomically(directory / FILE, json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n")


def read(directory: Path, kind: Kind, *, model: str, lora_rank: int) -> SavedState:
    """What `write` wrote. Raises UnusableState, saying why, where it cannot be used for this model."""
    state = _load(directory / FILE)
    if state.kind != kind:
        raise UnusableState(f"{directory} holds a {state.kind}; wanted is a {kind}")
    for name, saved, own in (("model", state.model, model), ("LoRA rank", state.lora_rank, lora_rank)):
        if saved != own:
            raise UnusableState(f"{directory} is of another model: its {name} is {saved}, not {own}")
    return state


def saved_in(directory: Path, *, strict: bool = False) -> Iterator[tuple[Path, SavedState]]:
    """The states and snapshots anywhere below a directory (a run's, say), each with the directory it was saved into.

    Damaged ones are left out; `strict`: they raise UnusableState.
    """
    for path in sorted(directory.rglob(FILE)):
        try:
            yield path.parent, _load(path)
        except UnusableState:
            if strict and path.exists():
                raise


def remotes(directory: Path) -> list[Remote]:
    """The same as `engine.storage.discarded` notes them."""
    return [Remote(state.path, state.server, state.expires) for _, state in saved_in(directory)]


def _load(path: Path) -> SavedState:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest")
        version_of_file = content.pop("format")
    except FileNotFoundError:
        raise UnusableState(f"{path.parent} holds no state of the tinker backend: {path.name} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UnusableState(f"{path} cannot be read: {error!r}") from error
    if digest != _digest({"format": version_of_file, **content}):
        raise UnusableState(f"{path} is damaged: its digest is not that of its content")
    if version_of_file != _FORMAT:
        raise UnusableState(f"{path} is of format {version_of_file}; this version reads format {_FORMAT}")
    try:
        return SavedState(**content)
    except TypeError as error:
        raise UnusableState(f"{path} cannot be read: {error}") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
