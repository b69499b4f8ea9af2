"""The first process of a run: starts the program, watches what it takes, ends it, and writes the report.

With namespaces it is pid 1 of the run's own, so that all of the run ends with it, and nothing in the run can signal it. It is not dumpable: the program,
which has the same user, can neither read its memory nor reach its descriptors through /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

FIRST_LOOK, INTERVAL = 0.01, 0.05
"""Seconds until the first look at what the run takes, and at most between two."""
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
MOST_ENTRIES = 20_000
"""Files and directories, where a directory's size is counted."""
CLEANING = 5.0
"""Seconds for ending processes one by one, where no namespace ends them all."""


class Watch:
    """What the run takes, and whether that is too much."""

    def __init__(
        self, limits: dict[str, Any], outputs: tuple[int, int], *, sees_all: bool, directory: str | None
    ) -> None:
        self._limits = limits
        self._directory = directory
        self._outputs = outputs
        self._sees_all = sees_all
        # What every process shares with the launcher, from which all were forked.
        self._shared = _resident("self")
        self.began = time.monotonic()
        self.memory = 0
        self.cpu = 0.0

    def left(self) -> float:
        """Seconds until the wall clock runs out."""
        return float(self.began + self._limits["wall_clock"] - time.monotonic())

    def passed(self) -> str | None:
        """The limit that has been passed, if any."""
        if self.left() <= 0:
            return "wall_clock"
        if self.output_full():
            return "output"
        count, memory, cpu = self._count()
        self.memory = max(self.memory, memory)
        self.cpu = max(self.cpu, cpu)
        if memory > self._limits["memory"] << 20:
            return "memory"
        if cpu > self._limits["cpu"]:
            return "cpu"
        if self._directory is not None and size_of(self._directory) > self._limits["disk"] << 20:
            return "disk"
        return "processes" if count > self._limits["processes"] else None

    def output_full(self) -> bool:
        """Whether more was written than is kept."""
        return any(os.fstat(fd).st_size > self._limits["output"] for fd in self._outputs)

    def _count(self) -> tuple[int, int, float]:
        """Processes, resident bytes and CPU seconds of everything in the run but this process."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        count, memory, cpu = 0, 0, children.ru_utime + children.ru_stime
        for fields in descendants().values() if self._sees_all else ():
            count += 1
            memory += max(0, int(fields[21]) * PAGE - self._shared)
            cpu += sum(map(int, fields[11:15])) / TICKS
        return count, memory, cpu


def _stat(pid: str) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  (a few times in 50 ms)
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return None


def _resident(pid: str) -> int:
    fields = _stat(pid)
    return 0 if fields is None else int(fields[21]) * PAGE


def descendants() -> dict[int, list[str]]:
    """The processes below this one, each with its fields of /proc/<pid>/stat from the third on: state, parent, ..."""
    mine = os.getpid()
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and int(name) != mine and (fields := _stat(name)) is not None:
            found[int(name)] = fields
    if mine == 1:  # of a namespace of our own
        return found
    below = {mine}
    while more := {pid for pid, fields in found.items() if int(fields[1]) in below} - below:
        below |= more
    return {pid: found[pid] for pid in below - {mine}}


def size_of(directory: str) -> int:
    """Bytes on disk below a directory; of a very large tree, more than any limit."""
    total, seen, waiting = 0, 0, [directory]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # gone meanwhile
            continue
        if seen > MOST_ENTRIES:
            return 1 << 62
    return total


class Stopped(BaseException):
    """The launcher wants the run to end."""


def _stop(*_: object) -> None:
    raise Stopped


def watch_program(
    start: Callable[[], NoReturn],
    limits: dict[str, Any],
    outputs: tuple[int, int],
    *,
    sees_all: bool,
    directory: str | None,
    stoppable: bool,
) -> dict[str, Any]:
    """Forks the program, waits for its end or for a limit, and reports. Does not end what the program left running.

    `stoppable`: SIGTERM ends the run. Not as pid 1 of a namespace, to which the program may send what is handled.
    """
    watch = Watch(limits, outputs, sees_all=sees_all, directory=directory)
    program = os.fork()
    if program == 0:
        start()
    try:
        if stoppable:
            signal.signal(signal.SIGTERM, _stop)
        status, passed = _wait(program, watch)
    except Stopped:
        status, passed = None, "stopped"
    if stoppable:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if passed is None and watch.output_full():
        passed = "output"
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    report: dict[str, Any] = {
        "wall_clock": time.monotonic() - watch.began,
        "cpu": max(watch.cpu, children.ru_utime + children.ru_stime),
        "memory": max(watch.memory, children.ru_maxrss << 10) / (1 << 20),
    }
    if status == signal.SIGKILL and report["cpu"] >= limits["cpu"]:  # the kernel's own limit, a little above
        passed = "cpu"
    return report | _ending(status, passed)


def _wait(program: int, watch: Watch) -> tuple[int | None, str | None]:
    fd = os.pidfd_open(program)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    pause = FIRST_LOOK
    while not poller.poll(max(0.0, min(pause, watch.left())) * 1000):
        reap_others(program)
        passed = watch.passed()
        if passed is not None:
            return None, passed
        pause = min(INTERVAL, pause * 2)
    os.close(fd)
    return os.waitpid(program, 0)[1], None


def reap_others(program: int) -> None:
    """Buries processes that lost their parents: an unburied one counts against the run's limit."""
    while True:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None or found.si_pid == program:
            return
        os.waitpid(found.si_pid, 0)


def _ending(status: int | None, passed: str | None) -> dict[str, Any]:
    if passed is not None or status is None:
        return {"ending": passed}
    if os.WIFEXITED(status):
        return {"ending": "exited", "exit_code": os.WEXITSTATUS(status)}
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return {"ending": "cpu"}
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return {"ending": "signalled", "signal": name}


def end_descendants() -> bool:
    """Ends everything below this process, which has adopted what lost its parents. For where no namespace does it. False: some of it would not end."""
    deadline = time.monotonic() + CLEANING
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        for pid in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    return False


def write_report(fd: int, report: dict[str, Any]) -> None:
    """As JSON, over whatever stands there."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(report).encode(), 0)
