"""The smallest script, run as it stands, only shorter."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from engine.rendering import get_renderer
from recipes import rl_basic
from recipes.tiny import make_tokenizer


@pytest.mark.local
def test_the_reward_rises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    config = rl_basic.Config(steps=8, group_size=16, run_dir=tmp_path / "run")
    result = anyio.run(rl_basic.run, config)
    assert result.ending == "complete"
    written = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    rewards = [json.loads(line)["env/all/reward/total"] for line in written.splitlines()]
    assert rewards[-1] > rewards[0] + 0.15
    printed = capsys.readouterr().out
    assert "before (step 1)" in printed
    assert "What comes after" in printed


def test_the_problem() -> None:
    env = rl_basic.NextDigit(get_renderer("role_colon", make_tokenizer()), 9)
    assert env.question() == "What comes after 9?"
    assert [env.grade(answer) for answer in ("0", " 0. ", "10", "9", "")] == [1.0, 1.0, 0.0, 0.0, 0.0]
    answers = [rl_basic.distracted(number) for number in range(600)]
    right = sum(int(said[1].text) == (int(said[0].text[-2]) + 1) % 10 for said in answers) / 600
    assert right == pytest.approx(1 / 3 + 2 / 3 / 10, abs=0.06)
