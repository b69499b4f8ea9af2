"""Cancellation at every step of a small run: nothing is left over, and what was written can be resumed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
import trio

from actors import Evaluation, RLSettings, RunResult, RunSettings, SamplerSettings, train_rl
from engine.backends.values import SamplingParams
from engine.runtime.testing import every_cancellation, simulate
from envs.contracts import Policy
from envs.rollout import RolloutSettings
from tests.actors.harness import (
    MODES,
    Accountant,
    Watched,
    check_directory,
    nothing_left,
    small_backend,
    training_of,
)
from tests.thoroughness import stride

STEPS = 3
EVERY_MOMENT = ("async-turn",)
"""Modes that are cancelled at every single task step; the others, at every fifth."""
SETTINGS = RLSettings(
    rollout=RolloutSettings(SamplingParams(max_tokens=40)), sampler=SamplerSettings(slots=3, deadline=60.0), seed=3
)


async def evaluation(policy: Policy) -> Mapping[str, float]:
    await anyio.sleep(0.7)
    return {"score": 0.5}


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_over(mode: str) -> None:
    left: list[str] = []
    accountant = Accountant()

    async def program() -> RunResult:
        trio.lowlevel.add_instrument(accountant)
        accountant.runs.clear()
        backend = small_backend()
        dataset = Watched(turns=2 if "turn" in mode else 1)
        try:
            return await train_rl(
                backend,
                groups=dataset,
                steps=2,
                schedule=MODES[mode],
                settings=SETTINGS,
                evaluations=[Evaluation("half", evaluation, every=1)],
            )
        finally:
            left.extend(nothing_left(backend, dataset.record))

    reports = []
    with accountant.at_work():
        every = 1 if mode in EVERY_MOMENT else stride(5, 1)
        for report in every_cancellation(program, seed=4, stride=every, horizon=1e4, max_steps=20_000):
            assert report.error is None, (report.steps, report.error)
            assert left == [], report.steps
            assert accountant.wrong == []
            reports.append(report)
    assert len(reports) > 60 / every
    complete = [report.value for report in reports if not report.cancelled]
    assert 0 < len(complete) < 10  # the last steps have nothing left to cancel
    assert all(result is not None and result.ending == "complete" for result in complete)


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_run_can_be_resumed(mode: str, tmp_path: Path) -> None:
    schedule, dataset = MODES[mode], Watched(turns=2 if "turn" in mode else 1)
    backends = []

    async def program(path: Path, resume: bool) -> RunResult:
        backends.append(small_backend())
        return await train_rl(
            backends[-1],
            groups=dataset,
            steps=STEPS,
            schedule=schedule,
            settings=SETTINGS,
            evaluations=[Evaluation("half", evaluation, every=1)],
            run=RunSettings(path, resume=resume, checkpoint_every=1),
        )

    simulate(program, tmp_path / "whole", False, seed=4).unwrap()
    wanted = training_of(backends[-1])
    check_directory(tmp_path / "whole", STEPS, schedule.groups_per_step)
    began_at = set()
    path = tmp_path / "run"
    for report in every_cancellation(program, path, False, seed=4, stride=stride(97, 29), horizon=1e4):
        assert report.error is None, report.error
        resumed = simulate(program, path, True, seed=9, horizon=1e4).unwrap()
        assert resumed.ending == "complete"
        assert resumed.gate is not None
        assert (resumed.gate.trained, resumed.gate.unsettled) == (STEPS * schedule.groups_per_step, 0)
        redone = training_of(backends[-1])
        if not schedule.max_staleness:  # with staleness, who is trained first depends on time that envs took before
            assert redone == {step: data for step, data in wanted.items() if step in redone}
        check_directory(path, STEPS, schedule.groups_per_step)
        assert sorted((row.version, row.name) for row in resumed.evaluations) == [(v, "half") for v in range(STEPS + 1)]
        began_at.add(min(redone, default=STEPS))
        shutil.rmtree(path)
    assert len(began_at) > 1
