"""A forked child becomes the program: its files, its standard streams, its limits, then its code.

Python runs in the fork itself, without a new interpreter: that saves the 10 to 20 ms in which one starts. What the program finds is nevertheless what it
would find in a fresh `python main.py`: a `__main__` of its own, arguments, streams, `exit()`, handlers at exit.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

STACK = 64 << 20
"""Bytes: what recursive solutions ask for, and eight times the usual."""
SPACE_BESIDE = 128 << 20
"""Bytes of address space beyond the memory limit: what is mapped and never touched."""
CANNOT_START = 127
MOST_DESCRIPTORS = 1000
"""The launcher has fewer open."""


def read_payload(fd: int) -> tuple[dict[str, Any], list[bytes]]:
    """What `envs.sandbox.local` packed: a line of JSON, then the files' bytes one after another."""
    with open(fd, "rb") as file:
        file.seek(0)
        header = json.loads(file.readline())
        return header, [file.read(size) for _, size in header["files"]]


def limit_resources(limits: dict[str, Any]) -> None:
    """Limits of each process."""
    memory, disk = limits["memory"] << 20, limits["disk"] << 20
    seconds = int(limits["cpu"]) + 1
    for what, soft, most in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory + SPACE_BESIDE, memory + SPACE_BESIDE),
        (resource.RLIMIT_FSIZE, max(disk, limits["output"] + 1), max(disk, limits["output"] + 1)),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_STACK, STACK, STACK),
    ):
        allowed = resource.getrlimit(what)[1]
        hard = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(what, (min(soft, hard), hard))


def write_files(directory: str, header: dict[str, Any], contents: Sequence[bytes]) -> None:
    """Lays the request's files into the private directory."""
    for (name, _), content in zip(header["files"], contents, strict=True):
        path = f"{directory}/{name}"
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  (pathlib costs a third of a run's start)
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(content)


def take_streams(stdin: int, stdout: int, stderr: int) -> None:
    """Makes these the standard streams, and closes every other descriptor."""
    # Above 2 first, so that none is overwritten before it is copied.
    sources = [os.dup(fd) if fd < 3 else fd for fd in (stdin, stdout, stderr)]
    for number, source in enumerate(sources):
        os.dup2(source, number)
    os.closerange(3, MOST_DESCRIPTORS)


def reset_signals() -> None:
    """As a shell would start it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Python's own default: BrokenPipeError
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run_python(path: str, source: bytes, search: Sequence[str]) -> NoReturn:
    """Runs the source as `__main__`, and exits as the interpreter would."""
    code = 0
    try:
        try:
            main = _fresh_main(path, search)
            exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)  # noqa: S102  (what this process is for)
        except SystemExit as end:
            code = _exit_code(end)
        except BaseException as error:  # noqa: BLE001  (as the interpreter does)
            code = 1
            _show(error)
        for finish in (_end_threads, _at_exit, _flush):
            try:
                finish()
            except SystemExit:
                pass
            except BaseException as error:  # noqa: BLE001
                _show(error)
                code = code or 1
    except BaseException:  # noqa: BLE001  (a program that has broken the interpreter around us)
        os._exit(code or 1)
    os._exit(code)


_ours: list[types.ModuleType] = []


def _fresh_main(path: str, search: Sequence[str]) -> types.ModuleType:
    # Kept, for freeing them would copy every page that they lie on.
    _ours.extend(sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "inside")
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    sys.argv = [path]
    sys.path[:] = [path.rpartition("/")[0], *search]
    # Not closed with the objects, as the interpreter's own: programs like to replace them.
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    random.seed()
    gc.enable()
    return main


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)  # noqa: T201  (as the interpreter does)
    return 1


def _show(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _end_threads() -> None:
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  (waits for threads that are no daemons)


def _at_exit() -> None:
    import atexit

    atexit._run_exitfuncs()  # noqa: SLF001


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def run_command(command: Sequence[str], path: str, environment: dict[str, str]) -> NoReturn:
    """Becomes another program."""
    try:
        os.execve(command[0], [*command, path], environment)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(CANNOT_START)
