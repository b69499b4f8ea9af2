"""What recipes tell the person at the terminal. A recipe inside another program says nothing, unless that program wants it to."""

from __future__ import annotations

import sys


def say(text: str, *, end: str = "\n") -> None:
    """Writes to stdout at once: in a pipe too, a line is there when it is said."""
    if not _silent():
        print(text, end=end, flush=True)


def warn(text: str) -> None:
    """Writes a line to stderr, where it is no part of a result."""
    if not _silent():
        print(text, file=sys.stderr, flush=True)


def grey(text: str) -> str:
    """The text in grey, where stdout shows colours."""
    return f"\x1b[90m{text}\x1b[0m" if sys.stdout.isatty() else text


def _silent() -> bool:
    from engine.telemetry.display import silent

    return silent.get()
