"""docs/serving.md: its code runs and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:```text\n(?P<output>.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs() -> None:
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == PAGE.count("```python\n") == 1
    names: dict[str, Any] = {"__name__": "serving"}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block["code"], "docs/serving.md", "exec", dont_inherit=True), names)
        assert printed.getvalue() == block["output"]
