"""docs/preference.md: its code runs, from top to bottom, and prints what the page says; the flags it names exist."""

from __future__ import annotations

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from recipes.flags import parse

PAGE = (Path(__file__).parents[2] / "docs" / "preference.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:```text\n(?P<output>.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs() -> None:
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == PAGE.count("```python\n") == 4
    names: dict[str, Any] = {"__name__": "preference"}
    for number, block in enumerate(blocks, 1):
        line = PAGE[: block.start("code")].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), capture_logs():  # a loss that the backend lacks is logged
            # The empty lines make a traceback show the line of the page.
            exec(compile("\n" * line + block["code"], "docs/preference.md", "exec", dont_inherit=True), names)
        assert printed.getvalue() == block["output"], f"block {number}"


def test_the_commands_have_the_flags_that_the_page_names() -> None:
    commands = re.findall(r"python -m recipes\.([\w.]+)( -[^\n#`|]*)?", PAGE)
    assert len(commands) >= 10
    for recipe, flags in commands:
        parse(import_module(f"recipes.{recipe}").Config, flags.split(), recipe)
