"""Runs in namespaces of their own, below a root that holds the interpreter and the system, read-only."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import filter as seccomp
from . import kernel
from .chamber import DEVICES, INODES, INSIDE_ID, MOUNT_POINTS, NOBODY, ROOM, confine, shown_at, within


class Namespaces:
    """Runs in namespaces of their own."""

    name = "user, pid, mount, network, IPC and UTS namespaces"

    def __init__(self, visible: Sequence[str], hidden: Sequence[str]) -> None:
        self._visible = visible
        self._hidden = hidden
        self._root = os.geteuid() == 0
        self._filter = seccomp.build()
        self._own_pids = -1
        self._proc = False

    def detach(self) -> None:
        """Leaves the caller's namespaces. The next child is pid 1 of the new ones."""
        other = _another_id()
        if self._root and other is None:
            raise OSError(1, "no user but root can be mapped into a namespace")
        outside = (other, other) if other is not None and self._root else (os.geteuid(), os.getegid())
        maps = [f"{INSIDE_ID} {outside[0]} 1", f"{INSIDE_ID} {outside[1]} 1"]
        if self._root:
            maps = [f"0 {os.geteuid()} 1\n{maps[0]}", f"0 {os.getegid()} 1\n{maps[1]}"]
        _unshare_user(maps, keep_groups=self._root)
        kernel.unshare(
            kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        )

    def open(self) -> tuple[dict[str, str], dict[str, str]]:
        """Builds the root that all runs start from, and moves there. Gives the aspects isolated, by what, and those missing, with the reason."""
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        self._proc = _build_root(self._visible, self._hidden)
        if self._proc:
            self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        network = "a namespace without interfaces" + (", no sockets (seccomp)" if self._filter else "")
        isolated = {
            "filesystem": "a root of its own: interpreter and system read-only, nothing else of this machine",
            "network": network,
            "processes": "a pid namespace that ends with the run",
            "user": f"user {NOBODY}, no capabilities" if self._root else "no capabilities, none can be gained",
            "disk": "a tmpfs of limited size",
        }
        missing = {}
        if self._proc:
            isolated["memory"] = (
                "resident memory of all processes, looked at 20 times a second, and address space of each"
            )
        else:
            missing["memory"] = "/proc cannot be mounted here, so only the address space of each process is limited"
        return isolated, missing

    @property
    def sees_all(self) -> bool:
        """Whether a run's first process can count the others."""
        return self._proc

    def fork(self) -> int:
        """Forks the first process of a run, as pid 1 of a namespace of its own."""
        if self._own_pids < 0:
            return os.fork()
        kernel.unshare(kernel.CLONE_NEWPID)
        process = -1
        try:
            process = os.fork()
        finally:
            if process:  # not in the child, whom it would be refused
                kernel.setns(self._own_pids, kernel.CLONE_NEWPID)
        return process

    def enter(self, limits: Mapping[str, Any]) -> str:
        """Makes the room of this run, and gives up all rights. Gives the directory that the program works in."""
        own_network = 0 if self._filter else kernel.CLONE_NEWNET
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | own_network)
        options = f"size={limits['disk']}m,nr_inodes={INODES},mode=0700,uid={INSIDE_ID},gid={INSIDE_ID}"
        kernel.mount("tmpfs", ROOM, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        if self._proc:
            _mount_proc("/proc")
        if self._root:
            os.setgroups([])
            os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
            os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        if self._proc:
            # A user namespace of its own, because processes are counted for each user of each namespace.
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
            _unshare_user([f"{INSIDE_ID} {INSIDE_ID} 1"] * 2, keep_groups=False)
        kernel.drop_capabilities()
        os.chdir(ROOM)
        return ROOM

    def limit_processes(self, limits: Mapping[str, Any]) -> None:
        """Called in the program. One process more than the program's is the run's first."""
        most = limits["processes"] + 1
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    def confine(self) -> None:
        """Called in the program."""
        confine(self._filter)

    stop_signal = signal.SIGKILL
    """Ends a run from outside."""
    watched: str | None = None
    """A directory whose size must be looked at; the tmpfs has a limit of its own."""

    def end(self) -> bool:
        """Called in the run's first process when it is done: the kernel ends the others with it."""
        return True

    def left(self, process: int) -> None:
        """Called in the launcher when a run is over: nothing is left."""


def _unshare_user(maps: Sequence[str], *, keep_groups: bool) -> None:
    """A new user namespace with these maps of users and groups. What maps more than oneself is written from outside, by a helper."""
    if not keep_groups:
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        _write_maps("self", maps, keep_groups=False)
        return
    target = os.getpid()
    go_read, go_write = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go_write)
        try:
            os.read(go_read, 1)
            _write_maps(str(target), maps, keep_groups=True)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
    finally:
        os.close(go_write)
        os.close(go_read)
        code = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if code:
        raise OSError(code, f"mapping users into a namespace: {os.strerror(code)}")


def _write_maps(process: str, maps: Sequence[str], *, keep_groups: bool) -> None:
    if not keep_groups:
        Path(f"/proc/{process}/setgroups").write_text("deny")
    Path(f"/proc/{process}/uid_map").write_text(maps[0])
    Path(f"/proc/{process}/gid_map").write_text(maps[1])


def _another_id() -> int | None:
    """An id outside that is not our own and exists where we are; `nobody` if it can be."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= NOBODY < first + count:
            return NOBODY
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first + count - 1 != os.geteuid():
            return first + count - 1
    return None


# ---- the root of all runs


def _build_root(visible: Sequence[str], hidden: Sequence[str]) -> bool:
    """A tmpfs with the visible paths bound into it, read-only, becomes the root. Whether it has a /proc."""
    taken = [os.path.realpath(path) for path in visible]
    point = next(
        point for point in MOUNT_POINTS if Path(point).is_dir() and not any(within(path, point) for path in taken)
    )
    kernel.mount("tmpfs", point, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    for path in visible:
        _show(path, point)
    for path in hidden:
        if Path(point + path).is_dir():
            kernel.mount("tmpfs", point + path, "tmpfs", kernel.MS_RDONLY, "size=4k,mode=0555")
    for name in ("proc", "tmp", "dev", "old"):
        Path(point, name).mkdir(exist_ok=True)
    _make_devices(point)
    proc = _mount_proc(
        point + "/proc"
    )  # while the old one is still there: the kernel wants to see that nothing of it is hidden
    os.chdir(point)
    kernel.pivot_root(".", "old")
    os.chdir("/")
    kernel.unmount("/old")
    Path("/old").rmdir()
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)
    return proc


def _mount_proc(target: str) -> bool:
    try:
        kernel.mount("proc", target, "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    except OSError:  # in a container that hides parts of its own
        return False
    return True


def _show(path: str, point: str) -> None:
    source, target = Path(path), Path(point + shown_at(path))
    if not (source.exists() or source.is_symlink()) or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    kernel.mount(path, str(target), None, kernel.MS_BIND | kernel.MS_REC)
    kernel.make_read_only(str(target))


def _make_devices(point: str) -> None:
    for name in DEVICES:
        if Path("/dev", name).exists():
            Path(point, "dev", name).touch()
            kernel.mount(f"/dev/{name}", f"{point}/dev/{name}", None, kernel.MS_BIND)
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("shm", ROOM),
    ):
        Path(point, "dev", name).symlink_to(target)
