"""System calls of Linux that Python does not have, through ctypes; each raises OSError naming the call."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522

MACHINE = platform.machine()
# Numbers from 424 on are the same on every architecture.
_MOUNT_SETATTR, _PIVOT_ROOT, _CAPSET = (
    442,
    {"x86_64": 155, "aarch64": 41}.get(MACHINE),
    {"x86_64": 126, "aarch64": 91}.get(MACHINE),
)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """New namespaces for this process (CLONE_NEWPID: for its next children)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int) -> None:
    """Joins a namespace."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {kind or source} on {target}",
    )


def unmount(target: str) -> None:
    """Detaches a mount and everything below it."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def make_read_only(target: str) -> None:
    """The mount and all below it: read-only, no set-user-id programs, no devices."""
    attributes = struct.pack("<QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    _check(
        _libc.syscall(
            _MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
        ),
        f"mount_setattr {target}",
    )


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    if _PIVOT_ROOT is None:
        raise OSError(38, f"pivot_root: its number on {MACHINE} is not known here")
    _check(_libc.syscall(_PIVOT_ROOT, os.fsencode(new), os.fsencode(old)), "pivot_root")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(
        _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)),
        f"prctl {option}",
    )


def drop_capabilities() -> None:
    """Gives up every capability that this process has."""
    if _CAPSET is None:
        raise OSError(38, f"capset: its number on {MACHINE} is not known here")
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(_CAPSET, header, bytes(24)), "capset")


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def install_filter(program: bytes) -> None:
    """A seccomp filter for this process and its descendants. Needs PR_SET_NO_NEW_PRIVS."""

    described = _Filter(len(program) // 8, program)
    _check(
        _libc.prctl(
            PR_SET_SECCOMP,
            ctypes.c_ulong(SECCOMP_MODE_FILTER),
            ctypes.byref(described),
            ctypes.c_ulong(0),
            ctypes.c_ulong(0),
        ),
        "seccomp",
    )


def landlock_version() -> int:
    """Version of Landlock in this kernel; 0 where there is none."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def landlock_ruleset(filesystem: int, scopes: int, version: int) -> int:
    """A file descriptor of a new ruleset that handles the rights in the bit mask `filesystem` and, from version 6 on, `scopes`."""
    attributes = struct.pack("<QQQ", filesystem, 0, scopes) if version >= 6 else struct.pack("<Q", filesystem)
    return _check(
        _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock_create_ruleset"
    )


def landlock_allow(ruleset: int, directory: int, rights: int) -> None:
    """Allows `rights` beneath an open directory (or on an open file)."""
    _check(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("<Qi", rights, directory), 0), "landlock_add_rule")


def landlock_restrict(ruleset: int) -> None:
    """Puts this process and its descendants under the ruleset."""
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
