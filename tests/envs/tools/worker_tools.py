"""Tools that run in worker processes: functions at the top level of a module."""

from __future__ import annotations

import os
import signal
import time

from envs.tools import ToolError, ToolUnavailable, tool


@tool(runs="process")
def power(base: int, exponent: int = 2) -> int:
    """A power."""
    return base**exponent


@tool(runs="process", seconds=0.3)
def forever() -> str:
    """Never comes back, and cannot be interrupted from outside."""
    while True:
        time.sleep(0.001)


@tool(runs="process")
def crash() -> str:
    """Takes its process down."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@tool(runs="process")
def refuse(how: str) -> str:
    """Raises."""
    raise {"words": ToolError, "world": ToolUnavailable, "bug": KeyError}[how](how)
