"""docs/distillation.md: its code runs, and its commands exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text(encoding="utf-8")


def test_the_code_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "distillation"}
    exec(compile(block, "docs/distillation.md", "exec"), names)
    assert names["hinted"].privileged


def test_the_commands_exist() -> None:
    modules = set(re.findall(r"`python -m (recipes\.[\w.]+)`", PAGE))
    assert len(modules) == 5
    assert set(re.findall(r"^\| `(recipes\.[\w.]+)` \|", PAGE, flags=re.MULTILINE)) == modules
    assert all(find_spec(module) is not None for module in modules)
