"""Saved states and snapshots: safetensors beside a manifest that says what they are and how to know that they are whole.

A directory holds `manifest.json` (written last) and the files it names, with their sizes and SHA-256. Reading checks all of it first,
so that damage, or a state of another model, is an `UnusableState` that says which, and never half-loaded weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.backends.errors import UnusableState

_FORMAT = 1
_MANIFEST = "manifest.json"


@attrs.frozen
class Saved:
    """What a directory holds."""

    model: str
    """The mark of its model."""
    version: int
    details: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Tensor]]


def write(
    directory: Path,
    kind: str,
    model: str,
    version: int,
    details: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Writes files of tensors into the existing `directory`, and the manifest last."""
    entries = {}
    for name, tensors in files.items():
        path = directory / f"{name}.safetensors"
        save_file({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}, path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _settle(path)
    manifest = {
        "format": _FORMAT,
        "kind": kind,
        "model": model,
        "version": version,
        "details": dict(details),
        "files": entries,
    }
    partial = directory / f"{_MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _settle(partial)
    partial.replace(directory / _MANIFEST)


def read(directory: Path, kind: str, model: str) -> Saved:
    """What `write` wrote. Raises UnusableState, saying why, where it cannot be used."""
    saved = read_any(directory, (kind,))
    if saved.model != model:
        raise UnusableState(
            f"{directory} is of another model or other adapters (it says {saved.model}, this is {model})"
        )
    return saved


def read_any(directory: Path, kinds: Sequence[str]) -> Saved:
    """What `write` wrote, whatever its model. Raises UnusableState, saying why, where it cannot be used."""
    path = directory / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["kind"])
        version, details, entries, of_model = (manifest[key] for key in ("version", "details", "files", "model"))
    except FileNotFoundError:
        raise UnusableState(f"{directory} holds no {' or '.join(kinds)}: {_MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableState(f"{path} cannot be read: {error!r}") from error
    if found[0] != _FORMAT or found[1] not in kinds:
        raise UnusableState(
            f"{directory} holds a {found[1]} of format {found[0]}; wanted is a {' or '.join(kinds)} of format {_FORMAT}"
        )
    return Saved(
        of_model,
        version,
        details,
        {name.removesuffix(".safetensors"): _load(directory / name, entry) for name, entry in entries.items()},
    )


def _load(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise UnusableState(f"{path} is damaged: its size or checksum is not what the manifest says")
        return load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UnusableState(f"{path} cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(path: Path) -> None:
    """Onto the disk: a manifest must never survive a crash that its files did not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def model_mark(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], frozen: Tensor | None) -> str:
    """A short mark by which a saved state knows its model: shapes, architecture, and a sample of the weights that stay fixed."""
    digest = hashlib.sha256(json.dumps([sorted(shapes.items()), config], sort_keys=True, default=str).encode())
    if frozen is not None:
        step = max(1, frozen.numel() // 4096)
        digest.update(frozen[::step].to(torch.float32).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
