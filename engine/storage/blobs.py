"""Bytes by name, somewhere else: a directory, memory, S3, and whatever else fsspec reaches.

A store is opened by its address: `runs/mirror`, `file:///data/mirror`, `memory://mirror`, `s3://bucket/mirror` (pip install 'callsheet[s3]').
All calls block: not on an event loop.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


class BlobError(Exception):
    """A store that cannot be used, or has not what it was asked for."""


class BlobStore(Protocol):
    """Bytes by name. Names are relative, with slashes; a blob is there whole or not at all."""

    @property
    def address(self) -> str:
        """What people know it by."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Writes a blob, in the place of one of that name."""
        ...

    def read(self, name: str) -> bytes:
        """A blob's bytes. Raises BlobError where there is none of that name."""
        ...

    def upload(self, name: str, source: Path) -> None:
        """Writes a file's contents, without holding them in memory."""
        ...

    def download(self, name: str, target: Path) -> None:
        """Writes a blob's bytes into a file. Raises BlobError where there is none of that name."""
        ...

    def names(self, prefix: str = "") -> Iterator[str]:
        """Names that begin with `prefix`, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Removes a blob; one that is not there is no error."""
        ...


class FsspecBlobs:
    """A store on any of fsspec's file systems."""

    def __init__(self, filesystem: Any, root: str, address: str) -> None:
        self.address = address
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def write(self, name: str, data: bytes) -> None:
        """See `BlobStore`. On a local disk, where a crash could leave half a file, it is written beside its place and moved."""
        path = self._path(name)
        self._made(path)
        if self._atomic:
            self._filesystem.pipe_file(path, data)
        else:
            self._filesystem.pipe_file(f"{path}.partial", data)
            self._filesystem.mv(f"{path}.partial", path)

    def read(self, name: str) -> bytes:
        """See `BlobStore`."""
        try:
            data: bytes = self._filesystem.cat_file(self._path(name))
        except FileNotFoundError:
            raise BlobError(f"{self.address} holds no {name}") from None
        return data

    def upload(self, name: str, source: Path) -> None:
        """See `BlobStore`."""
        path = self._path(name)
        self._made(path)
        target = path if self._atomic else f"{path}.partial"
        self._filesystem.put_file(str(source), target)
        if target != path:
            self._filesystem.mv(target, path)

    def download(self, name: str, target: Path) -> None:
        """See `BlobStore`."""
        try:
            self._filesystem.get_file(self._path(name), str(target))
        except FileNotFoundError:
            raise BlobError(f"{self.address} holds no {name}") from None

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `BlobStore`."""
        self._filesystem.invalidate_cache()
        try:
            found = self._filesystem.find(self._root)
        except FileNotFoundError:
            return
        for path in sorted(found):
            name = path[len(self._root) :].lstrip("/")
            if name.startswith(prefix) and not name.endswith(".partial"):
                yield name

    def delete(self, name: str) -> None:
        """See `BlobStore`."""
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(name))

    @property
    def _atomic(self) -> bool:
        """Whether the file system shows a file only when it is whole, as object stores do."""
        return "file" not in (
            self._filesystem.protocol if isinstance(self._filesystem.protocol, tuple) else [self._filesystem.protocol]
        )

    def _path(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/") or not name:
            raise ValueError(f"a blob's name is a relative path without '..', not {name!r}")
        return f"{self._root}/{name}"

    def _made(self, path: str) -> None:
        if not self._atomic:
            self._filesystem.makedirs(posixpath.dirname(path), exist_ok=True)


def open_blobs(address: str | Path, **options: Any) -> FsspecBlobs:
    """The store at an address. `options` go to fsspec's file system (keys, an endpoint).

    Raises BlobError, in one line, for an address that fsspec does not know or whose package is missing.
    """
    import fsspec

    text = str(address)
    try:
        filesystem, root = fsspec.core.url_to_fs(text, **options)
    except ImportError as error:
        hint = "pip install 'callsheet[s3]'" if text.startswith("s3:") else str(error)
        raise BlobError(f"{text}: a package is missing: {hint}") from None
    except ValueError as error:
        raise BlobError(f"{text}: {error}") from None
    if not root.strip("/"):
        raise BlobError(f"{text}: it names no place of its own; a bucket or a directory behind it is wanted")
    return FsspecBlobs(filesystem, root, text)
