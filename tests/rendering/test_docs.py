"""The code of docs/rendering.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rendering.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/rendering.md", "exec"), scope)
    assert scope["parsed"].ok
