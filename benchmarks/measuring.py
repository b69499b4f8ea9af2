"""Running one case in a fresh process, and showing results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PEER = Path(__file__).parent / "peers" / "tinker_cookbook_loop.py"


def fresh(module: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """What `python -m module --child CASE` prints as its last line, from an interpreter of its own."""
    return _line([sys.executable, "-m", module, "--child", json.dumps(case)])


def peer(python: str, source: str | None, **options: Any) -> dict[str, Any]:
    """One run of tinker-cookbook's loop; options are those of its driver, `no_gc=True` for a flag."""
    command = [python, str(PEER), *(["--src", source] if source else [])]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [] if value is False else [flag, str(value)]
    return _line(command)


def _line(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    line: dict[str, Any] = json.loads(lines[-1])
    return line


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def save(path: str | None, results: Any) -> None:
    """Writes results as JSON where a path was given."""
    if path is not None:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
