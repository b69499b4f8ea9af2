"""gym_rl: a tiny model learns a task, the curriculum moves with its success, and goes on after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import anyio
import attrs
import pytest

from actors.schedule import Schedule
from envs.reasoning_tasks.curriculum import CurriculumConfig
from recipes import gym_rl, runs

SHORT = gym_rl.Config(
    steps=2,
    schedule=Schedule(groups_per_step=2),
    group_size=4,
    warm_up=4,
    evaluate_every=2,
    evaluation_problems=4,
    checkpoint_every=1,
    grading=gym_rl.GymGradingConfig(workers=1),
)


def run(config: gym_rl.Config) -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("reasoning_gym")
    return anyio.run(gym_rl.run, config)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.local
def test_a_short_run_and_its_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every group raises the level here, whatever it answers: so a resumed run shows where it goes on."""
    directory = tmp_path / "run"
    easy = CurriculumConfig(raise_at=0.001, lower_at=0.0, window=1, highest=4)
    form = attrs.evolve(SHORT.form, partial_credit=True)
    config = attrs.evolve(SHORT, run_dir=directory, curriculum=easy, form=form, evaluation_levels=(0,))
    run(config)
    first = lines(directory / "metrics.jsonl")
    assert {"env/all/correct", "env/all/level", "env/spell_backward/level"} <= first[0].keys()
    assert [row["step"] for row in lines(directory / "evaluations.jsonl")] == [0, 2]
    result = run(attrs.evolve(config, steps=4, resume=True))
    assert (result.ending, result.version) == ("complete", 4)
    rows = lines(directory / "metrics.jsonl")
    assert rows[:2] == first
    assert rows[2]["env/all/level"] >= rows[1]["env/all/level"] > 0
    assert "levels    spell_backward " in capsys.readouterr().out


@pytest.mark.local
@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """A third of the default run: words of three letters, from mostly forward to mostly backward."""
    config = attrs.evolve(
        SHORT, steps=14, schedule=Schedule(groups_per_step=16), group_size=16, warm_up=250, evaluation_levels=(0,)
    )
    run(attrs.evolve(config, run_dir=tmp_path / "run"))
    rewards = [row["env/all/reward/total"] for row in lines(tmp_path / "run" / "metrics.jsonl")]
    assert fmean(rewards[-3:]) > fmean(rewards[:2]) + 0.15, rewards


def test_what_is_wrong_is_told_before_anything_is_made(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    made = tmp_path / "run"
    with pytest.raises(ValueError, match="did you mean 'gcd'"):
        anyio.run(gym_rl.run, attrs.evolve(SHORT, tasks=("gdc",), run_dir=made))
    assert not made.exists()
    with pytest.raises(ValueError, match="options is no JSON"):
        gym_rl.Config(options="min_terms=3")
    with pytest.raises(ValueError, match="options must be a JSON object"):
        gym_rl.Config(options="[3]")


def test_the_list_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("reasoning_gym")
    assert anyio.run(gym_rl.run, attrs.evolve(SHORT, list=True)) is None
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 100
    assert any(line.split() == ["chain_sum", "11", "levels", "num_terms,", "num_digits"] for line in printed)


def test_defaults_follow_the_model() -> None:
    real = runs.defaults(gym_rl.Config, ["--model", "x/y"], by_model=gym_rl.FOR_REAL_MODELS)
    assert (real.warm_up, real.form.tags, real.curriculum.start) == (0, True, 0)
