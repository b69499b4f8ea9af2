"""Runs without namespaces: what Landlock, seccomp and, as root, users of their own can do."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import filter as seccomp
from . import kernel, program, warden
from .chamber import DEVICES, RESTRICTED_IDS, confine, within

# Rights of Landlock's first version: execute 1, write 2, read 4, list 8, remove 16|32, make 64...4096; refer 1<<13 (2), truncate 1<<14 (3), ioctl 1<<15 (5).
_WRITE, _LIST = 2, 8
_READ = 1 | 4 | _LIST
_FIRST_VERSION = (1 << 13) - 1
_ON_FILES = 1 | 2 | 4 | 1 << 14 | 1 << 15
_SCOPES = 3
"""Abstract sockets and signals stay inside (version 6)."""


class Restricted:
    """Runs without namespaces: what Landlock, seccomp and (as root) users of their own can do."""

    name = "Landlock, seccomp and resource limits, without namespaces"

    def __init__(self, visible: Sequence[str], hidden: Sequence[str], private: str) -> None:
        self._visible = visible
        self._hidden = hidden
        self._private = private
        self._filter = seccomp.build()
        self._landlock = kernel.landlock_version()
        self._own_user = False
        self._count = 0
        self._directory = ""
        self._directories: dict[int, str] = {}
        self._user = -1
        self.sees_all = True

    stop_signal = signal.SIGTERM
    """The first process of a run must end the others."""

    @property
    def watched(self) -> str | None:
        """The run's directory."""
        return self._directory

    def detach(self) -> None:
        """Nothing is left behind."""

    def open(self) -> tuple[dict[str, str], dict[str, str]]:
        """As of Namespaces."""
        self._own_user = os.geteuid() == 0 and _as_user(RESTRICTED_IDS, _read_interpreter)
        isolated, missing = (
            {},
            {"disk": "only the size of each file is limited, and what the run's directory holds when it is looked at"},
        )
        isolated["memory"] = "resident memory of all processes, looked at 20 times a second, and address space of each"
        if self._landlock:
            self._prepare_rules()
            isolated["filesystem"] = (
                f"Landlock {self._landlock}: interpreter and system to read, its own directory to write"
            )
        else:
            missing["filesystem"] = "this kernel has no Landlock, and namespaces cannot be had"
        if self._filter is not None:
            isolated["network"] = "no sockets (seccomp)"
        else:
            missing["network"] = "this architecture's system calls are not known here, and namespaces cannot be had"
        if self._own_user:
            isolated["user"] = "a user of the run's own, no capabilities"
            isolated["processes"] = "a user of the run's own, whose processes are all killed at the end"
        else:
            missing["user"] = (
                "no other user may read the interpreter's files, and namespaces cannot be had"
                if os.geteuid() == 0
                else "programs have this user's rights, and namespaces cannot be had"
            )
            missing["processes"] = "processes are ended one by one, and namespaces cannot be had"
        return isolated, missing

    def _prepare_rules(self) -> None:
        """What all runs may do at most: a list that is too long to be made for each of them."""
        shared = _ruleset(self._landlock)
        for path in self._visible:
            _allow_all_but(shared, os.path.realpath(path), self._hidden)
        _allow(shared, self._private, _all_rights(self._landlock))
        os.dup2(shared, program.MOST_DESCRIPTORS, inheritable=False)  # where a program's own descriptors are not closed
        os.close(shared)

    def fork(self) -> int:
        """Forks the first process of a run, which gets its directory and user here."""
        self._count += 1
        self._directory = str(Path(self._private, str(self._count)))
        self._user = RESTRICTED_IDS + self._count % 100_000
        Path(self._directory).mkdir(mode=0o700)
        process = os.fork()
        if process:
            self._directories[process] = self._directory
        return process

    def enter(self, limits: Mapping[str, Any]) -> str:  # noqa: ARG002  (namespaces need them)
        """Adopts what loses its parents; the user is changed later, in the program, because this process must outlive the run's."""
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if self._own_user:
            os.chown(self._directory, self._user, self._user)
        os.chdir(self._directory)
        return self._directory

    def limit_processes(self, limits: Mapping[str, Any]) -> None:
        """Counted by user; where the user is ours, its other processes count too, so there the first process counts instead."""
        if self._own_user:
            _become(self._user)
            resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))

    def confine(self) -> None:
        """Called in the program, whose directory is the working directory."""
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_capabilities()
        if self._landlock:
            kernel.landlock_restrict(program.MOST_DESCRIPTORS)
            os.close(program.MOST_DESCRIPTORS)
            own = _ruleset(self._landlock)
            for path in self._visible:
                _allow(own, path, _READ)
            _allow(own, self._directory, _all_rights(self._landlock))
            kernel.landlock_restrict(own)
            os.close(own)
        confine(self._filter)

    def end(self) -> bool:
        """Kills whatever the run has left, and removes its directory."""
        if self._own_user:
            _as_user(self._user, lambda: os.kill(-1, signal.SIGKILL))
        ended = warden.end_descendants()
        shutil.rmtree(self._directory, ignore_errors=True)
        return ended

    def left(self, process: int) -> None:
        """Called in the launcher when a run is over."""
        directory = self._directories.pop(process)
        if Path(directory).exists():  # its first process was killed
            shutil.rmtree(directory, ignore_errors=True)


def _read_interpreter() -> None:
    if not os.access(os.__file__, os.R_OK):
        raise PermissionError(os.__file__)


def _as_user(user: int, action: Callable[[], None]) -> bool:
    """Lets a child do something as that user. Whether it could become that user."""
    child = os.fork()
    if child == 0:
        try:
            _become(user)
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] in (0, signal.SIGKILL)


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _all_rights(version: int) -> int:
    """Every right over files that Landlock knows at this version."""
    rights = _FIRST_VERSION
    for since, right in ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15)):
        if version >= since:
            rights |= right
    return rights


def _ruleset(version: int) -> int:
    """Allows nothing but the devices."""
    ruleset = kernel.landlock_ruleset(_all_rights(version), _SCOPES, version)
    for name in DEVICES:
        _allow(ruleset, f"/dev/{name}", _READ | _WRITE)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    """These rights at and below the path, if there is one."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _ON_FILES
    kernel.landlock_allow(ruleset, fd, rights)
    os.close(fd)


def _allow_all_but(ruleset: int, path: str, hidden: Sequence[str]) -> None:
    """Reading at and below the real path, but for what is hidden there, of which names can be listed. Rules only add, so what lies beside it is named."""
    if path in hidden:
        return
    if not any(within(other, path) for other in hidden):
        _allow(ruleset, path, _READ)
        return
    _allow(ruleset, path, _LIST)
    for child in os.listdir(path):  # noqa: PTH208
        inner = f"{path.rstrip('/')}/{child}"
        if not Path(inner).is_symlink():  # what it points to is named where it lies
            _allow_all_but(ruleset, inner, hidden)
