"""docs/backends.md: its table of checks is the suite's, gaps included."""

from __future__ import annotations

import re
from pathlib import Path

from engine.backends import conformance
from tests.backends.test_conformance_simulated import NO_GRADIENTS
from tests.serving.test_server import GAPS

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)


def test_the_table_is_the_suite() -> None:
    checks = [row for row in ROWS if row[0] not in {"local", "simulated", "tinker", "openai_compatible"}]
    assert [row[0] for row in checks] == [check.__name__ for check in conformance.CHECKS]
    declared = {"simulated": set(NO_GRADIENTS), "openai_compatible": set(GAPS), "local": set(), "tinker": set()}
    for place, backend in ((1, "local"), (2, "simulated"), (3, "tinker"), (4, "openai_compatible")):
        assert {row[0] for row in checks if row[place].startswith("gap")} == declared[backend], backend
