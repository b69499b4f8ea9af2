"""The room for one run, in the two ways that Linux offers.

                Namespaces                                        Restricted
needs           user namespaces                                   nothing (Landlock and seccomp, where the kernel has them)
filesystem      a root of its own: the interpreter and the        Landlock: the same paths may be read, the private directory written
                system read-only, a tmpfs of limited size
network         a namespace without interfaces, and seccomp       seccomp alone
processes       a pid namespace: gone when its pid 1 is           as root, a user of the run's own whose processes are all killed;
                                                                  else one by one
user            as root: nobody; else ours, without rights        as root: a user of the run's own; else ours

`open()` is called once in the launcher and says what it achieved; `enter()` in each run's first process; `confine()` in the program, last of all.
"""

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

INSIDE_ID = 1000
"""User and group of a program, as it sees itself."""
NOBODY = 65534
ROOM = "/tmp"  # noqa: S108  (inside the run's own root)
MOUNT_POINTS = ("/mnt", "/media", "/srv", "/opt", "/run", "/var", "/boot")
DEVICES = ("null", "zero", "full", "random", "urandom")
INODES = 4096
"""Files and directories that a run may make."""
RESTRICTED_IDS = 1_900_000_000
"""First user id of those that runs get of their own, where there are no namespaces."""


def confine(filters: bytes | None) -> None:
    """No new privileges and, where it is known here, the filter of system calls."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if filters is not None:
        kernel.install_filter(filters)


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
        point for point in MOUNT_POINTS if Path(point).is_dir() and not any(_within(path, point) for path in taken)
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


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _show(path: str, point: str) -> None:
    source, target = Path(path), Path(point + path)
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


# ---- without namespaces

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
    if not any(_within(other, path) for other in hidden):
        _allow(ruleset, path, _READ)
        return
    _allow(ruleset, path, _LIST)
    for child in os.listdir(path):  # noqa: PTH208
        inner = f"{path.rstrip('/')}/{child}"
        if not Path(inner).is_symlink():  # what it points to is named where it lies
            _allow_all_but(ruleset, inner, hidden)
