"""A copy of a run directory in a blob store, so that a run can go on on another machine.

    index.json          the files of the copy: name, size, digest
    objects/<digest>    their contents; a file that did not change is not sent again

The index is written last, and the objects that only the older index names are removed after that: whoever reads a copy, even of a run that is going
on or whose machine has gone, finds one whole state of it. What it holds of a run is what a resume needs: every checkpoint in it has the lines that
belong to it, because the list of checkpoints is read first.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from engine.storage.blobs import BlobError, BlobStore
from engine.storage.checkpoints import MANIFEST
from engine.storage.files import digest_of, read_lines
from engine.storage.run_directory import CHECKPOINTS, CONFIG, METRICS

INDEX = "index.json"
_NOT_COPIED = {"run.lock", CHECKPOINTS}
"""The lock is of this machine; the list of checkpoints is copied as it was read first."""
_TRIES = 5


@attrs.frozen
class Pushed:
    """What a push did."""

    files: int
    """Files in the copy now."""
    sent: int
    """Files whose contents were not there yet."""
    bytes: int
    """Sent."""


def push_run(run: Path, blobs: BlobStore) -> Pushed:
    """Brings the copy of a run up to date. May be called while the run goes on. Raises OSError; BlobError, with the copy as it was, where there is no run."""
    if not any((run / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS)):
        raise BlobError(f"{run} holds no run to be copied")
    for _ in range(_TRIES - 1):
        with suppress(FileNotFoundError):  # a checkpoint that the run has just given up
            return _push(run, blobs)
    return _push(run, blobs)


def _push(run: Path, blobs: BlobStore) -> Pushed:
    before = _read_index(blobs)
    there = {name.removeprefix("objects/") for name in blobs.names("objects/")}
    files: dict[str, dict[str, Any]] = {}
    sent = size = 0
    with tempfile.TemporaryDirectory(prefix="callsheet-mirror-") as scratch:
        for name, source, known in _files(run, Path(scratch)):
            digest = known or digest_of(source)
            files[name] = {"bytes": source.stat().st_size, "sha256": digest}
            if digest not in there:
                blobs.upload(f"objects/{digest}", source)
                there.add(digest)
                sent, size = sent + 1, size + files[name]["bytes"]
    if before is None or before["files"] != files:
        blobs.write(INDEX, json.dumps({"format": 1, "files": files}, indent=1).encode())
    for digest in there - {facts["sha256"] for facts in files.values()}:
        blobs.delete(f"objects/{digest}")
    return Pushed(len(files), sent, size)


def _files(run: Path, scratch: Path) -> Iterator[tuple[str, Path, str | None]]:
    """Name, where the bytes lie that will not change any more, and their digest where it is known."""
    rows = [row for row in read_lines(run / CHECKPOINTS) if (run / row["path"] / MANIFEST).exists()]
    listed = scratch / CHECKPOINTS
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    yield CHECKPOINTS, listed, None
    for directory in dict.fromkeys(row["path"] for row in rows):
        manifest = json.loads((run / directory / MANIFEST).read_text(encoding="utf-8"))
        yield f"{directory}/{MANIFEST}", run / directory / MANIFEST, None
        for name, facts in manifest["files"].items():
            yield f"{directory}/{name}", run / directory / name, facts["sha256"]
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        inside = name.parts[0] == "checkpoints" and len(name.parts) > 2
        if path.is_file() and not inside and str(name) not in _NOT_COPIED and not name.name.startswith("."):
            still = scratch / "still"  # lines may be added while it is sent
            shutil.copyfile(path, still)
            yield str(name), still, None


def pull_run(blobs: BlobStore, run: Path) -> int:
    """Writes the copy into a new directory, whole or not at all; gives the number of files. It is resumed like any other.

    Raises FileExistsError where there is something already, BlobError where the store holds no run or what it holds is damaged.
    """
    if run.exists() and any(run.iterdir()):
        raise FileExistsError(f"{run} is not empty: the copy of a run goes into a directory of its own")
    index = _read_index(blobs)
    if index is None:
        raise BlobError(f"{blobs.address} holds no run")
    run.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{run.name}.", dir=run.parent))
    try:
        for name, facts in index["files"].items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            blobs.download(f"objects/{facts['sha256']}", target)
            if target.stat().st_size != facts["bytes"] or digest_of(target) != facts["sha256"]:
                raise BlobError(f"{blobs.address}: {name} is damaged")
        if run.exists():
            run.rmdir()
        partial.chmod(0o755)
        partial.rename(run)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(index["files"])


def _read_index(blobs: BlobStore) -> dict[str, Any] | None:
    """The copy's index; None where there is no copy yet."""
    if INDEX not in blobs.names(INDEX):
        return None
    try:
        index: dict[str, Any] = json.loads(blobs.read(INDEX))
        names = [str(name) for name in index["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BlobError(f"{blobs.address}: its {INDEX} cannot be read ({error})") from None
    if outside := [name for name in names if name.startswith("/") or ".." in Path(name).parts]:
        raise BlobError(f"{blobs.address}: its {INDEX} names {outside[0]!r}, which lies outside of a run")
    return index
