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

from . import kernel

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


def shown_at(path: str) -> str:
    """Where the root of runs shows a path of the machine: at its own place, but for what every run's own ROOM would hide."""
    return f"/shown{path}" if within(path, ROOM) else path


def within(path: str, directory: str) -> bool:
    """Whether a path is the directory or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
