"""What a run could leave behind: processes, descriptors, files in the temporary directory."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

import anyio
import attrs


@functools.cache
def namespaces() -> bool:
    """Whether this machine lets us have them, as told by something else than the sandbox: a failure of its own must not look like that."""
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount", "true"], check=False
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


@attrs.frozen
class Here:
    """What is there at one moment."""

    processes: frozenset[int]
    """Descendants of this process."""
    descriptors: int
    files: frozenset[str]
    """In the temporary directory, of ours."""


def here() -> Here:
    """What is there now."""
    ours = frozenset(path.name for path in Path(tempfile.gettempdir()).glob("callsheet-sandbox-*/*"))
    return Here(frozenset(_descendants()), len([*Path("/proc/self/fd").iterdir()]), ours)


async def none_beside(before: Here, seconds: float = 3.0) -> None:
    """Fails unless all that was not there before is gone; a reaped process may take a moment to vanish from /proc."""
    for _ in range(int(seconds / 0.02)):
        now = here()
        if now.processes <= before.processes and now.files <= before.files and now.descriptors <= before.descriptors:
            return
        await anyio.sleep(0.02)
    assert now.processes <= before.processes, (
        f"processes left: {[_name(pid) for pid in now.processes - before.processes]}"
    )
    assert now == before


def _descendants() -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {os.getpid()}


def _name(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_text().replace("\0", " ")
    except OSError:
        return f"{pid} (gone)"
