"""The long-lived process that forks one run after another: what starts here has an interpreter already, and everything the runs share.

What travels over the socket (SOCK_SEQPACKET, one JSON object a packet):

    to the launcher                                                       from it
    {"setup": visible and hidden paths, library, preload, ...}            {"ready": {"name", "isolated", "missing"}} or {"failed": why}
    {"run": number, "limits": {...}}  + payload, stdin, stdout, stderr, report
                                                                          {"ended": number}: nothing of the run is left
    {"kill": number}

The launcher never reads a payload, so that its memory, which every program inherits, holds nothing of other programs.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from . import kernel, program, warden
from .chamber import shown_at
from .namespaces import Namespaces
from .restricted import Restricted

PACKET = 1 << 16
DESCRIPTORS = 5
Chamber = Namespaces | Restricted


USUAL = """atexit bisect builtins collections copy datetime decimal fractions functools heapq io itertools json linecache math operator random re
statistics string sys threading time traceback types typing"""
"""Modules that most programs import."""


class Launcher:
    """Serves runs until the other end of the socket is closed."""

    def __init__(self, connection: socket.socket, room: Chamber, setup: dict[str, Any]) -> None:
        self._connection = connection
        self._room = room
        self._setup = setup
        self._runs: dict[int, tuple[int, int]] = {}  # descriptor of the run's first process -> (number, process)

    def serve(self) -> None:
        """The loop."""
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._connection.fileno():
                    if not self._receive(poller):
                        return
                else:
                    poller.unregister(fd)
                    self._bury(fd)

    def _receive(self, poller: select.poll) -> bool:
        data, ancillary, _, _ = self._connection.recvmsg(PACKET, socket.CMSG_SPACE(DESCRIPTORS * 4))
        if not data:
            return False
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        message = json.loads(data)
        if "kill" in message:
            for number, process in self._runs.values():
                if number == message["kill"]:
                    os.kill(process, self._room.stop_signal)
            return True
        try:
            process = self._room.fork()
            if process == 0:
                _run(self._room, message, list(fds), self._setup)
            fd = os.pidfd_open(process)
            self._runs[fd] = (message["run"], process)
            poller.register(fd, select.POLLIN)
        except OSError as error:
            warden.write_report(fds[-1], {"failed": f"no process could be started: {error}"})
            self._connection.send(json.dumps({"ended": message["run"]}).encode())
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _bury(self, fd: int) -> None:
        number, process = self._runs.pop(fd)
        os.close(fd)
        os.waitpid(process, 0)
        self._room.left(process)
        self._connection.send(json.dumps({"ended": number}).encode())


def _run(room: Chamber, message: dict[str, Any], fds: list[int], setup: dict[str, Any]) -> NoReturn:
    """The first process of a run."""
    payload, stdin, stdout, stderr, report = fds
    code = 0
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, room.stop_signal)
        limits = message["limits"]
        directory = room.enter(limits)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, room.stop_signal)  # forgotten when the user changes
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

        def start() -> NoReturn:
            _become_program(room, directory, limits, (payload, stdin, stdout, stderr), setup)

        found = warden.watch_program(
            start,
            limits,
            (stdout, stderr),
            sees_all=room.sees_all,
            directory=room.watched,
            stoppable=room.stop_signal == signal.SIGTERM,
        )
        if not room.end():
            found["failed"] = "some of its processes would not end"
        warden.write_report(report, found)
    except BaseException as error:  # noqa: BLE001  (the report says so)
        code = 1
        warden.write_report(report, {"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def _become_program(
    room: Chamber, directory: str, limits: dict[str, Any], fds: tuple[int, int, int, int], setup: dict[str, Any]
) -> NoReturn:
    """The second process of a run."""
    try:
        os.setsid()
        header, contents = program.read_payload(fds[0])
        program.take_streams(*fds[1:])
    except BaseException:  # noqa: BLE001
        os._exit(program.CANNOT_START)
    try:
        program.limit_resources(limits)
        room.limit_processes(limits)
        program.write_files(directory, header, contents)
        program.reset_signals()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        room.confine()
    except BaseException as error:  # noqa: BLE001  (e.g. more files than the disk holds)
        os.write(2, f"the sandbox could not start the program: {error}\n".encode())
        os._exit(program.CANNOT_START)
    path = f"{directory}/{header['files'][0][0]}"
    os.environ["HOME"] = os.environ["TMPDIR"] = directory
    command = setup["commands"].get(header["language"])
    if command:
        program.run_command(command, path, dict(os.environ))
    program.run_python(path, contents[0], setup["search"])


def _load_library(packages: Sequence[str]) -> None:
    """Imports our caller's own packages, whole. Before the root changes: programs have them in memory alone."""
    for package in packages:
        home, _, name = package.rpartition("/")
        sys.path.insert(0, home)
        importlib.import_module(name)
        for file in sorted(os.listdir(package)):  # noqa: PTH208
            if file.endswith(".py") and file != "__init__.py":
                importlib.import_module(f"{name}.{file.removesuffix('.py')}")
        sys.path.remove(home)


def _prepare(setup: dict[str, Any]) -> None:
    """What all programs find already loaded."""
    import site

    site.setquit()
    site.sethelper()
    sys.path[:] = [path for path in sys.path if path not in setup["forget"]] + setup["packages"]
    setup["search"] = list(sys.path)
    for name in [*USUAL.split(), *setup["preload"]]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.disable()


def main(fd: int) -> None:
    """The life of the process: the outer one only leaves the namespaces behind and waits, the inner one serves."""
    # A handler of Python's would let a program interrupt its first process; as pid 1 of a namespace that one ignores what it does not handle.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    connection = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    setup = json.loads(connection.recv(1 << 20))
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != setup["parent"]:  # it died before the line above
        return
    try:
        room = _choose(setup)
        room.detach()
        inner = os.fork()
    except OSError as error:
        connection.send(json.dumps({"failed": str(error)}).encode())
        return
    if inner:
        connection.close()
        os.waitpid(inner, 0)
        return
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        _load_library(setup["library"])
        isolated, missing = room.open()
        if setup["means"] == "namespaces":
            setup["packages"] = [shown_at(path) for path in setup["packages"]]
        _prepare(setup)
        # Nothing of the caller's environment: not even through the launcher's own memory can a program find a key in it.
        connection.send(json.dumps({"ready": {"name": room.name, "isolated": isolated, "missing": missing}}).encode())
    except BaseException as error:  # noqa: BLE001
        connection.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    Launcher(connection, room, setup).serve()
    os._exit(0)


def _choose(setup: dict[str, Any]) -> Chamber:
    if setup["means"] == "namespaces":
        return Namespaces(setup["visible"], setup["hidden"])
    return Restricted(setup["visible"], setup["hidden"], setup["private"])
