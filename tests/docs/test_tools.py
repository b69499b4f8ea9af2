"""docs/tools.md: its code runs, from top to bottom, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?", flags=re.MULTILINE | re.DOTALL
)


def test_the_page_runs() -> None:
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == PAGE.count("```python\n") == 5
    assert sum(block["output"] is not None for block in blocks) == PAGE.count("```text\n") == 5
    names: dict[str, Any] = {"__name__": "tools"}
    for number, block in enumerate(blocks, 1):
        printed = io.StringIO()
        line = PAGE[: block.start("code")].count("\n")
        with contextlib.redirect_stdout(printed):
            # The empty lines make a traceback show the line of the page.
            exec(compile("\n" * line + block["code"], "docs/tools.md", "exec", dont_inherit=True), names)
        assert printed.getvalue() == (block["output"] or ""), f"block {number}"
