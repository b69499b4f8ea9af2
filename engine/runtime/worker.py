"""The inside of a worker process: reads jobs from a socket, runs them one by one, writes one reply for each.

Run as a script (`python -P engine/runtime/worker.py FD`), never by importing `engine`: the standard library alone, so that it is ready after some
30 ms. The module of a job's function is imported when the function is first asked for.

What travels, each as a frame (8 bytes of length, little-endian, then a pickle):

    to the worker                                               from the worker, or ("failed", (kind, message, traceback))
    ("setup", parent's pid, sys.path, modules to import)        ("ready", None)
    ("load", function, sys.path, main module or None)           ("ready", None)
    ("run", function, [arguments, ...])                         ("value", object) for each arguments

A function is `module:qualname`. Its loading is a round of its own because importing a module can take longer than a job's budget.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

HEADER = struct.Struct("<Q")
LOADING_MAIN = "CALLSHEET_WORKER_LOADS_MAIN"
"""Set in a worker while it imports the program's main module, which must not start its work then."""


class Failure(NamedTuple):
    """An exception as text: its class may be unknown, or expensive to import, on the other side."""

    kind: str
    message: str
    traceback: str


def describe(error: BaseException) -> Failure:
    """The exception's qualified class name, message and formatted traceback."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (a job's exception may have a broken __str__)
        message = "(its message cannot be shown)"
    return Failure(f"{module}{kind.__qualname__}", message, "".join(traceback.format_exception(error)))


def encode(message: object) -> bytes:
    """One frame."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def resolve(function: str) -> Callable[..., Any]:
    """The function called `module:qualname`."""
    module, _, qualname = function.partition(":")
    found: Any = sys.modules["__main__"] if module == "__main__" else importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


def watch_parent(parent: int, fd: int) -> None:
    """Ends this process when its parent dies, whatever a job is doing then."""
    if not _signal_at_parents_death():
        threading.Thread(target=exit_at_hangup, args=(fd,), daemon=True).start()
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _signal_at_parents_death() -> bool:
    """Linux: the kernel sends SIGKILL, even to a job that holds the interpreter lock."""
    if sys.platform != "linux":
        return False
    import ctypes

    pr_set_pdeathsig = 1
    try:
        return ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0) == 0  # type: ignore[no-any-return]
    except (OSError, AttributeError):
        return False


def exit_at_hangup(fd: int) -> None:
    """Elsewhere: waits until the other end of `fd` is closed, then exits at once."""
    import select

    poller = select.poll()
    poller.register(fd, 0)  # a hangup is always reported
    poller.poll()
    os._exit(1)


class Connection:
    """The worker's end of the socket, blocking."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # a job's own child processes must not keep it open
        self._socket = socket.socket(fileno=fd)
        self._reader = self._socket.makefile("rb")

    def receive(self) -> tuple[Any, ...]:
        """The next message. EOFError when the parent has closed its end."""
        (length,) = HEADER.unpack(self._read(HEADER.size))
        return pickle.loads(self._read(length))  # type: ignore[no-any-return]  # noqa: S301  (from our own parent)

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        if data is None or len(data) < size:
            raise EOFError
        return data

    def send(self, kind: str, content: object) -> None:
        """One reply; what cannot be pickled becomes a failure that says so."""
        try:
            frame = encode((kind, content))
        except Exception as error:  # noqa: BLE001  (whatever a __reduce__ raises)
            error.add_note(f"the job returned a {type(content).__qualname__}, which cannot be sent between processes")
            frame = encode(("failed", tuple(describe(error))))
        self._socket.sendall(frame)


class Worker:
    """Carries out what it is sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._functions: dict[str, Callable[..., Any]] = {}

    def serve(self) -> None:
        """Until the parent closes its end."""
        while True:
            command, *content = self._connection.receive()
            self._run(*content) if command == "run" else self._prepare(*content)

    def _prepare(self, function: str, path: Sequence[str], main: dict[str, Any] | None) -> None:
        try:
            self._load(function, path, main)
        except BaseException as error:  # noqa: BLE001  (importing a module can raise anything, SystemExit too)
            self._connection.send("failed", tuple(describe(error)))
        else:
            self._connection.send("ready", None)

    def _load(self, function: str, path: Sequence[str], main: dict[str, Any] | None) -> None:
        if function in self._functions:
            return
        sys.path[:] = path
        if main is not None and "__mp_main__" not in sys.modules:
            from multiprocessing import spawn

            os.environ[LOADING_MAIN] = "1"
            spawn.prepare(main)  # imports the script under another name, so that its `if __name__ ==` is skipped
            del os.environ[LOADING_MAIN]
        self._functions[function] = resolve(function)

    def _run(self, function: str, batch: Sequence[Sequence[Any]]) -> None:
        call = self._functions[function]
        for arguments in batch:
            try:
                value = call(*arguments)
            except BaseException as error:  # noqa: BLE001  (graded code likes to call exit(), which is no reason to die)
                self._connection.send("failed", tuple(describe(error)))
            else:
                self._connection.send("value", value)


def main(fd: int) -> None:
    """The life of the process."""
    connection = Connection(fd)
    try:
        _, parent, sys.path[:], modules = connection.receive()
        watch_parent(parent, fd)
        try:
            for module in modules:
                importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001  (as above)
            connection.send("failed", tuple(describe(error)))
            return
        connection.send("ready", None)
        Worker(connection).serve()
    except (EOFError, ConnectionError):  # the parent has closed its end, or is dead
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
