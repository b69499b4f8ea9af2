"""The benchmark of the tinker backend beside the bare SDK runs to its end, on whichever line of the SDK is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tinker")


def test_both_sides_are_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    few = ["--repeats", "1", "--rounds", "1", "--concurrent", "4", "--datums", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tinker_adapter", *few, "--json", str(figures)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "a server that has every answer ready" in done.stdout
    found = json.loads(figures.read_text())
    for side in ("adapter", "bare"):
        (measured,) = found[side]
        assert 0 < measured["datum"] < 1
        assert 0 < measured["of it in the event loop's thread"] < measured["sample"] < 1
