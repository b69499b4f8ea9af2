"""The recipes of games, on a simulated model: they wire what they promise. That they learn is measured, with commands in docs/multiplayer.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from recipes import run

SMALL: dict[str, Any] = {
    "model": "simulated",
    "steps": 2,
    "schedule": {"groups_per_step": 2},
    "group_size": 2,
    "evaluate_every": 2,
    "evaluation_games": 2,
}


@pytest.mark.parametrize(
    ("recipe", "config", "evaluations"),
    [
        ("guess_number", {}, {"fixed numbers"}),
        ("twenty_questions", {}, {"every thing"}),
        ("tic_tac_toe", {}, {"against random", "against minimax", "against the start"}),
        ("tic_tac_toe", {"opponent": "start"}, {"against random", "against minimax", "against the start"}),
    ],
)
def test_a_run_on_a_simulated_model(recipe: str, config: dict[str, Any], evaluations: set[str], tmp_path: Path) -> None:
    async def program() -> Any:
        given = {**SMALL, **config, "run_dir": str(tmp_path / "run")}
        return await run(f"multiplayer_rl.{recipe}", given, manifest="test")

    result = anyio.run(program)
    assert (result.ending, result.version) == ("complete", 2)
    assert {report.name for report in result.evaluations} == evaluations
    assert all(row["groups/failed"] == 0 for row in result.rows)
