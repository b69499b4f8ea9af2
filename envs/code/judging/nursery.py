"""Forks the solution's processes, and buries them. Knows no test, and is older than the referee's knowledge of them."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from .lines import Line
from .values import decode, encode

NOBODY = 65534
WHOLE_SOURCE = 1 << 30
MOST_DESCRIPTORS = 4096
MOST_DETAIL = 400
ENDING = 2.0
"""Seconds for ending what a solution has left behind."""
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def hide() -> None:
    """Other processes of this user cannot read this one, nor reach its descriptors."""
    _prctl(PR_SET_DUMPABLE, 0)


def serve(line: Line) -> None:
    """Serves the referee until it hangs up."""
    hide()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # adopts what the solution's processes leave behind
    silence = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(silence, fd)
    os.close(silence)
    source = line.receive(most=WHOLE_SOURCE)["source"]
    process, ended = 0, -1
    while True:
        wait = 0 if line.has_message() else None
        watched = [line.end.fileno()] if ended < 0 else [line.end.fileno(), ended]
        ready, _, _ = select.select(watched, [], [], wait)
        if ended in ready:
            _, status, usage = os.wait4(process, 0)
            os.close(ended)
            ended = -1
            line.send({"status": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime})
            continue
        message = line.receive()
        if "start" in message:
            descriptors, line.descriptors = line.descriptors, []
            process = os.fork()
            if process == 0:
                line.end.close()
                _become_solution(source, message["start"], descriptors)
            for fd in descriptors:
                os.close(fd)
            ended = os.pidfd_open(process)
            line.send({"process": process})
        else:
            clean = _end_children(process)
            if ended >= 0:
                os.close(ended)
                ended = -1
            line.send({"clean": clean})


def _end_children(process: int) -> bool:
    """Kills everything below this process. Whether it is gone, as far as can be seen: without /proc, of what the solution's process has forked off only its group
    is known, and the rest ends with the run."""
    if not os.access("/proc/self/stat", os.R_OK):
        return _end_group(process)
    deadline = time.monotonic() + ENDING
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        for child in _children():
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    return False


def _end_group(process: int) -> bool:
    if process:
        with contextlib.suppress(OSError):
            os.killpg(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
    return True


def _children() -> list[int]:
    """Processes whose parent is this one; orphans come to it, so that in the end it sees all."""
    mine = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == mine]  # noqa: PTH208


def _parent_of(process: str) -> int:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # gone meanwhile
        return -1


# ---- in the solution's process


def _become_solution(source: str, limits: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Turns a fork of the nursery into the answer's program: streams, limits, user, then the code. A fourth descriptor is the line on which its functions are called."""
    code = 1
    try:
        os.setsid()
        for number, fd in enumerate([os.dup(fd) for fd in descriptors]):  # none of the copies is as low as the numbers
            os.dup2(fd, number)
        os.closerange(len(descriptors), MOST_DESCRIPTORS)
        line = Line(socket.socket(fileno=3)) if len(descriptors) > 3 else None
        for what, most in ((resource.RLIMIT_CPU, int(limits["cpu"]) + 1), (resource.RLIMIT_FSIZE, limits["output"])):
            hard = resource.getrlimit(what)[1]
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (soft, soft))
        if os.geteuid() == 0:
            with contextlib.suppress(PermissionError):  # a root without rights is an ordinary user already
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
        _prctl(PR_SET_DUMPABLE, 1)
        code = _run_program(source) if line is None else _serve_calls(source, line)
    finally:
        os._exit(code)


def _fresh_module(name: str) -> types.ModuleType:
    for ours in [*sys.modules]:
        if ours.partition(".")[0] == "judging":
            _ours.append(sys.modules.pop(ours))  # noqa: PERF401
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    module.__file__ = "solution.py"
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    return module


_ours: list[types.ModuleType] = []
"""Kept alive: freeing them would copy the pages that they lie on."""


def _run_program(source: str) -> int:
    """The solution as a program that reads stdin and writes stdout. Its exit code."""
    module = _fresh_module("__main__")
    code = 0
    try:
        exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001
        code = 1
        _tell_error()
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001
        code = code or 1
    return code & 0xFF


def _serve_calls(source: str, line: Line) -> int:
    """The solution as a module whose functions are called."""
    module = _fresh_module("solution")
    handles: list[Any] = []
    try:
        exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException as error:  # noqa: BLE001
        line.send({"raised": _describe(error)})
        return 1
    line.send({"value": None})
    while True:
        try:
            message = line.receive()
        except EOFError:
            return 0
        try:
            args = decode(message["args"], handles.__getitem__)
            kwargs = decode(message["kwargs"], handles.__getitem__)
            target = message["target"]
            function = handles[target] if isinstance(target, int) else _find(module, target)
            answer = {"value": encode(function(*args, **kwargs), handles)}
            line.send(answer)
        except Exception as error:  # noqa: BLE001
            line.send({"raised": _describe(error)})


def _find(module: types.ModuleType, name: str) -> Any:
    """What has that name, at the top level or as a method of `Solution`."""
    if name in module.__dict__:
        return module.__dict__[name]
    if "Solution" in module.__dict__:
        return getattr(module.__dict__["Solution"](), name)
    raise NameError(f"name '{name}' is not defined")


def _describe(error: BaseException) -> list[str]:
    try:
        return [type(error).__name__, str(error)[:MOST_DETAIL]]
    except Exception:  # noqa: BLE001
        return [type(error).__name__, ""]


def _tell_error() -> None:
    with contextlib.suppress(BaseException):
        kind, error, trace = sys.exc_info()
        while trace is not None and trace.tb_frame.f_code.co_filename != "solution.py":
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace, limit=-8)
