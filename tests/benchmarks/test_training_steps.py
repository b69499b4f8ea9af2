"""The benchmark of training steps hands both sides the work it says, and notices when they did not do the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import training_steps


@pytest.mark.parametrize(("turns", "observed", "sampled"), training_steps.ASSEMBLY.values())
def test_assembly_is_of_the_stated_size(tmp_path: Path, turns: int, observed: int, sampled: int) -> None:
    work = tmp_path / "work.npz"
    training_steps.write_trajectories(work, turns, observed, sampled, groups=2, seed=0)
    found = training_steps.run_assembly(work)
    # Turns extend each other: a datum a trajectory, each token read once.
    assert found["datums"] == 2 * training_steps.MEMBERS
    assert found["tokens"] == 2 * training_steps.MEMBERS * (turns * (observed + sampled) - 1)
    advantages = np.load(work)["advantages"].astype(np.float32).astype(np.float64)
    assert found["advantage"] == pytest.approx(float(advantages.sum()) * turns * sampled, abs=0.02)


@pytest.mark.parametrize(("case", "fields"), [("sft, equal lengths", 1), ("sft, 32 to 224 tokens", 1), ("dpo", 3)])
def test_rows_are_the_same_for_both(tmp_path: Path, case: str, fields: int) -> None:
    rows = []
    for name in ("a", "b"):
        training_steps.write_rows(tmp_path / name, case, steps=2, seed=3)
        rows.append(json.loads((tmp_path / name).read_text()))
    assert rows[0] == rows[1]
    assert len(rows[0]) == (32 if case == "dpo" else 64)
    assert all(len(row) == fields for row in rows[0])
    if "equal" in case:
        assert {len(row["text"]) for row in rows[0]} == {128}


def test_different_work_is_no_comparison() -> None:
    with pytest.raises(SystemExit, match="dpo: tokens differ, so it is not the same work"):
        training_steps._check_same("dpo", [{"tokens": 5}, {"tokens": 6}])
