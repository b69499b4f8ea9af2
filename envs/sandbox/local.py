"""Programs on this machine, each in namespaces of its own; Linux.

    run() ──payload, stdin, output files──▶ launcher ──fork──▶ a run's first process ──fork──▶ the program
                                               │                  watches and ends it
    outcome ◀──report, outputs── "ended" ◀─────┘

The launcher is a process of its own, started once: it has an interpreter ready, so that a run costs some milliseconds instead of the start of one. Programs and
what they print travel in anonymous files, never through this process's event loop; reading stops at the limit. If this process dies, so does the launcher, and with it
everything that runs (by signals from the kernel).

`isolation()` says what this machine isolates, found out by doing it; `require` says what a program may not run without.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import anyio.abc

from engine.runtime.processes import usable_cpus
from envs.sandbox.launcher import CannotStart, Launcher
from envs.sandbox.port import Aspect, Isolation, RunOutcome, RunRequest, SandboxUnavailable

Means = Literal["auto", "namespaces", "restricted"]
DEFAULT_REQUIRE: frozenset[Aspect] = frozenset({"filesystem", "network", "processes"})

SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)
"""Paths outside of the interpreter's own that a program may read."""


class LocalSandbox:
    """Runs programs on this machine. Use as an async context manager; leaving it ends all runs and waits until they are gone.

    `require`: what must be isolated; opening raises IsolationUnavailable where it cannot be. `concurrency`: runs at one time; default: one for each usable
    CPU. `commands`: further languages, each by the command that is given the main file, e.g. {"bash": ("/bin/bash",)}. `packages`: whether programs may import what is
    installed beside this project; otherwise the standard library alone. `preload`: modules that every program finds already loaded, so that importing them costs nothing.
    `library`: directories of packages that are ours (standard library alone, `*.py` at one level), found by programs in the same way; a request's files that equal theirs
    need not be written. `readable`: further paths that programs may read. `means`: `auto` tries
    namespaces, then what can be had without.
    """

    def __init__(
        self,
        *,
        require: Collection[Aspect] = DEFAULT_REQUIRE,
        concurrency: int | None = None,
        commands: Mapping[str, Sequence[str]] | None = None,
        packages: bool = False,
        preload: Sequence[str] = (),
        library: Sequence[Path] = (),
        readable: Sequence[str] = (),
        means: Means = "auto",
    ) -> None:
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"LocalSandbox: concurrency must be at least 1, not {concurrency}")
        self._require = frozenset(require)
        self._slots = anyio.Semaphore(concurrency or usable_cpus(), fast_acquire=True)
        self._commands = {name: tuple(command) for name, command in (commands or {}).items()}
        self._packages = packages
        self._preload = tuple(preload)
        self._library = [path.resolve() for path in library]
        self._known = _files_of(self._library)
        self._readable = tuple(readable)
        self._means: tuple[Means, ...] = ("namespaces", "restricted") if means == "auto" else (means,)
        self._launcher: Launcher | None = None
        self._restarting = anyio.Lock()
        self._tasks: anyio.abc.TaskGroup | None = None

    # ---- life

    async def __aenter__(self) -> Self:
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"the local sandbox needs Linux, and this is {sys.platform}: run in a Linux container or virtual machine, or use sandbox_fusion"
            )
        self._tasks = await anyio.create_task_group().__aenter__()
        try:
            self._launcher = await self._start(self._tasks)
            self._launcher.isolation.require(self._require)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        launcher, self._launcher = self._launcher, None
        tasks, self._tasks = self._tasks, None
        with anyio.CancelScope(shield=True):
            if launcher is not None:
                await launcher.close()
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)  # what the block raised goes on as it is, not in a group

    async def _start(self, tasks: anyio.abc.TaskGroup) -> Launcher:
        failures: dict[str, str] = {}
        for means in self._means:
            launcher = Launcher(self._setup(means))
            try:
                await launcher.open(failures, tasks)
            except CannotStart as error:
                failures[means] = str(error)
                await launcher.close()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await launcher.close()
                raise
            else:
                return launcher
        why = "; ".join(f"{means}: {failure}" for means, failure in failures.items())
        raise SandboxUnavailable(f"the local sandbox cannot start ({why})")

    def _setup(self, means: str) -> dict[str, Any]:
        installed = _installed_packages()
        return {
            "means": means,
            "parent": os.getpid(),
            "visible": [*_interpreter_paths(), *(installed if self._packages else ()), *SYSTEM, *self._readable],
            "hidden": [] if self._packages else [*map(os.path.realpath, [*installed, *_system_packages()])],
            "packages": installed if self._packages else [],
            "preload": self._preload,
            "library": [str(path) for path in self._library],
            "commands": self._commands,
            "forget": [str(Path(__file__).parent), ""],
        }

    def isolation(self) -> Isolation:
        """What the open sandbox isolates. Raises SandboxUnavailable before it is opened."""
        if self._launcher is None:
            raise SandboxUnavailable("the local sandbox is not open: use `async with LocalSandbox() as sandbox`")
        return self._launcher.isolation

    # ---- runs

    async def run(self, request: RunRequest) -> RunOutcome:
        """As of `Sandbox`."""
        if request.language != "python" and request.language not in self._commands:
            known = ", ".join(["python", *self._commands])
            raise ValueError(
                f"the local sandbox has no language {request.language!r} (it has {known}): give it in `commands`"
            )
        async with self._slots:
            launcher = await self._running()
            return await launcher.run(request, self._known)

    async def _running(self) -> Launcher:
        """The launcher; another one where it has died."""
        async with self._restarting:
            if self._launcher is None or self._tasks is None:
                raise SandboxUnavailable("the local sandbox is not open: use `async with LocalSandbox() as sandbox`")
            if self._launcher.dead:
                await self._launcher.close()
                self._launcher = await self._start(self._tasks)
            return self._launcher


def _files_of(packages: Sequence[Path]) -> dict[str, bytes]:
    """Their files by the paths that they have in a program's directory: `judging/referee.py`."""
    return {f"{package.name}/{file.name}": file.read_bytes() for package in packages for file in package.glob("*.py")}


def _interpreter_paths() -> list[str]:
    """Directories of the interpreter: its programs, its standard library and, where it is linked to one, its shared library."""
    paths = [sys.base_prefix, sys.base_exec_prefix, sysconfig.get_path("stdlib"), str(Path(sys.executable).parent)]
    found = [os.path.realpath(path) for path in paths]
    return _without_inner(path for path in found if path != "/")


def _installed_packages() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _system_packages() -> list[str]:
    """Directories with packages of the base interpreter and of the system's: what they hold (a benchmark's solutions, say) is not for programs to read."""
    prefixes = dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, "/usr/local", "/usr"))
    return [
        str(found)
        for prefix in prefixes
        for library in ("lib", "lib64")
        for found in Path(prefix, library).glob("python3*/*-packages")
        if found.name in ("site-packages", "dist-packages") and found.is_dir()
    ]


def _without_inner(paths: Iterable[str]) -> list[str]:
    """The paths without those that lie in another one."""
    found = sorted(set(paths))
    return [path for path in found if not any(path.startswith(other + "/") for other in found)]
