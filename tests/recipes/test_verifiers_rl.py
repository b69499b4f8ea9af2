"""recipes.verifiers_rl on an environment in turns. Where verifiers is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import anyio
import pytest

from actors import Schedule
from recipes.learning_rates import LearningRateConfig

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(
        importlib.util.find_spec("verifiers") is None, reason="verifiers is heavy: pip install 'callsheet[verifiers]'"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_an_environment_in_turns_is_trained_on_from_end_to_end(tmp_path: Path) -> None:
    """Short: that such a game is learnt is shown by the documented command, and on a table in tests/envs/test_verifiers_episodes.py."""
    pytest.importorskip("torch")
    from recipes import verifiers_rl

    config = verifiers_rl.Config(
        environment=verifiers_rl.GAME,
        steps=2,
        warm_up=4,
        schedule=Schedule(groups_per_step=2),
        group_size=2,
        learning_rate=LearningRateConfig(peak=1e-3, warmup_steps=1),
        max_tokens=6,
        limit=20,
        evaluation_problems=3,
        evaluate_every=1,
        run_dir=tmp_path / "run",
    )
    result = anyio.run(verifiers_rl.run, config)
    assert result is not None
    assert result.ending == "complete"
    assert [report.version for report in result.evaluations] == [0, 1, 2]
    assert "all/verifiers/guesses" in result.evaluations[0].metrics
    assert (tmp_path / "run" / "report.html").exists()
