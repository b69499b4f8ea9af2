"""docs/estimators.md: its code runs, and its tables name everything there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.training.advantages import ADVANTAGES
from engine.training.corrections import CORRECTIONS
from engine.training.losses import LOSSES

PAGE = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"estimators.md, block {number + 1}", "exec"), names)


def test_the_tables_are_complete() -> None:
    for title, registry in (("Advantages", ADVANTAGES), ("Losses", LOSSES), ("Off-policy corrections", CORRECTIONS)):
        first_cells = " ".join(line.split("|")[1] for line in section(title).splitlines() if line.startswith("|"))
        assert set(re.findall(r"`([^`]+)`", first_cells)) == set(registry), title


def test_the_scopes_are_right() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (group|step) \|", section("Advantages"), flags=re.MULTILINE)
    assert dict(rows) == {name: advantage.scope for name, advantage in ADVANTAGES.items()}


def test_the_losses_parameters_are_right() -> None:
    for name, formula in LOSSES.items():
        for parameter, default in formula.params.items():
            if parameter.startswith("clip_") and name != "ppo":
                continue  # named once, with ppo
            row = next(line for line in section("Losses").splitlines() if f"`{name}`" in line.split("|")[1])
            assert re.search(rf"`{parameter}` ({default:g}|{f'{default:g}'.lstrip('0')})\b", row), (name, parameter)
