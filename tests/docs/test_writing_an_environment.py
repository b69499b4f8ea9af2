"""docs/writing-an-environment.md: its code runs, from top to bottom, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "writing-an-environment.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?", flags=re.MULTILINE | re.DOTALL
)


@pytest.mark.local
def test_the_page_runs() -> None:
    pytest.importorskip("torch")
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == PAGE.count("```python\n") == 6
    assert sum(block["output"] is not None for block in blocks) == PAGE.count("```text\n") == 3
    names: dict[str, Any] = {"__name__": "writing_an_environment"}
    for number, block in enumerate(blocks, 1):
        line = PAGE[: block.start("code")].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # The empty lines make a traceback show the line of the page.
            exec(
                compile("\n" * line + block["code"], "docs/writing-an-environment.md", "exec", dont_inherit=True), names
            )
        assert printed.getvalue() == (block["output"] or ""), f"block {number}"
