"""The overhead benchmark measures what it says: every step of every mode, and an engine that sleeps while it waits."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import overhead


def arguments() -> argparse.Namespace:
    return argparse.Namespace(
        groups=[4], turns=[1, 2], modes=["sync", "streaming", "async"], steps=3, size=4, loop="asyncio"
    )


@pytest.mark.parametrize("case", [case for case in overhead.cases(arguments()) if case["gc"]], ids=overhead.named)
def test_a_case_runs_and_counts_its_steps(case: dict[str, object]) -> None:
    outcome = overhead.run_case(case)
    assert len(outcome["cpu_us"]) == case["steps"] - 1  # type: ignore[operator]
    assert 0 < overhead.median_us([outcome]) < 20_000
    assert outcome["peak_mb"] >= outcome["before_mb"]


def test_cases_cover_modes_turns_gc_and_length() -> None:
    names = [overhead.named(case) for case in overhead.cases(arguments())]
    assert len(names) == len(set(names)) == 8
    assert any("gc off" in name for name in names)
    assert any("18 steps" in name for name in names)
