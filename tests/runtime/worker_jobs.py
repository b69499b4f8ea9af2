"""What the tests of worker processes run in them. Standard library alone, as the workers import it."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path


def add(a: int, b: int) -> int:
    return a + b


def square(x: int) -> int:
    if x < 0:
        raise ValueError(f"no square wanted of {x}")
    return x * x


def burn(seconds: float) -> str:
    """Uses the CPU for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return "burnt"


def burn_if(seconds: float, x: int) -> int:
    burn(seconds)
    return x


def burn_holding_the_interpreter_lock() -> None:
    """Catastrophic backtracking: minutes inside one C call."""
    re.match(r"(a+)+$", "a" * 40 + "b")


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def leave_if(code: int, x: int) -> int:
    if code:
        os._exit(code)
    return x


def call_exit() -> None:
    sys.exit("graded code said goodbye")


def kill_myself() -> None:
    os.kill(os.getpid(), 9)


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("made of this process alone")


def return_unpicklable() -> Unpicklable:
    return Unpicklable()


def my_pid() -> int:
    return os.getpid()


def long_text(length: int) -> str:
    return "x" * length


def length_of(text: str) -> int:
    return len(text)


def print_something() -> None:
    print("printed by a job")


def start_child_and(then: str, pid_file: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(pid_file).write_text(str(child.pid))
    if then == "leave":
        os._exit(1)
    burn(60)
