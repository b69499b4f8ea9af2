"""What this process holds: tasks, threads, child processes, open files, temporary files. Compared before and after, it shows what was left behind."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import attrs
from anyio.lowlevel import checkpoint

from engine.conformance import NotConforming

_KEPT_THREADS = ("AnyIO worker thread", "Trio thread", "trio-", "asyncio_")
_KEPT_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@attrs.frozen
class Holdings:
    """What is held, by kind: an id for each thing, and what people call it."""

    held: Mapping[str, Mapping[object, str]]

    @classmethod
    def now(cls) -> Holdings:
        """Everything that can be found out here: child processes and open files need Linux's /proc."""
        return cls(
            {
                "tasks": {task.id: str(task.name) for task in anyio.get_running_tasks()},
                "threads": _threads(),
                "child processes": _children(),
                "open files": _open_files(),
                "temporary files": _temporary_files(),
            }
        )

    def beyond(self, before: Holdings) -> dict[str, list[str]]:
        """What is held now and was not before, by kind."""
        found = {}
        for kind, things in self.held.items():
            new = [name for key, name in things.items() if key not in before.held[kind]]
            replaced = kind in ("child processes", "open files") and len(things) <= len(before.held[kind])
            if new and not replaced:  # a pool may have put a new worker into an old one's place
                found[kind] = new
        return found


@contextmanager
def private_temporary_directory() -> Iterator[Path]:
    """Temporary files of the block go into a directory of its own, so that those of other programs are not taken for ours."""
    kept, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as directory:
        tempfile.tempdir = os.environ["TMPDIR"] = directory
        try:
            yield Path(directory)
        finally:
            tempfile.tempdir = kept
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


async def nothing_beyond(before: Holdings, when: str, patience: float) -> None:
    """Waits up to `patience` real seconds for what is ending, then raises NotConforming for what is still there."""
    end = time.monotonic() + patience
    while True:
        left = Holdings.now().beyond(before)
        if not left:
            return
        if time.monotonic() > end:
            told = "; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in left.items())
            raise NotConforming(f"left behind {when}: {told}")
        await checkpoint()
        time.sleep(0.002)  # noqa: ASYNC251  (real time: on a virtual clock nothing else may make it jump)


def _threads() -> dict[object, str]:
    return {
        thread.ident: thread.name
        for thread in threading.enumerate()
        if not thread.daemon and not thread.name.startswith(_KEPT_THREADS)
    }


def _children() -> dict[object, str]:
    found: dict[object, str] = {}
    waiting = [os.getpid()]
    while waiting:
        for child in _children_of(waiting.pop()):
            name = _command_of(child)
            if not any(kept in name for kept in _KEPT_PROCESSES):
                found[child] = f"{name} ({child})"
                waiting.append(child)
    return found


def _children_of(process: int) -> list[int]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):
                found += [int(number) for number in (task / "children").read_text().split()]
    return found


def _command_of(process: int) -> str:
    with suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return command[-120:] or "zombie"
    return "gone"


def _open_files() -> dict[object, str]:
    found: dict[object, str] = {}
    with suppress(OSError):
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                target = str(link.readlink())
                found[link.name, target] = f"{target} (descriptor {link.name})"
    return {key: name for key, name in found.items() if f"/proc/{os.getpid()}/fd" not in name}


def _temporary_files() -> dict[object, str]:
    return {str(path): str(path) for path in Path(tempfile.gettempdir()).rglob("*")}
