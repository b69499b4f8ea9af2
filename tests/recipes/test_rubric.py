"""The recipe `rubric`: the reward rises, judges are asked as the flags say, and what is wrong is said first."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors import Schedule
from engine.completion import Completer, ScriptedCompleter
from engine.data import BadRow
from engine.rendering import Message
from recipes import rubric, runs
from recipes.judging import JudgeConfig
from recipes.ports import Ports

SHORT = rubric.Config(
    steps=14,
    warm_up=140,
    schedule=Schedule(groups_per_step=12),
    group_size=8,
    evaluation_problems=64,
    evaluate_every=100,
)
"""After twelve steps, seeds 0 to 5: from .19-.32 to .36-.84."""


def run(config: rubric.Config, ports: Ports | None = None) -> Any:
    pytest.importorskip("torch")
    return anyio.run(rubric.run, config, *([ports] if ports is not None else []))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.local
def test_the_reward_rises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(attrs.evolve(SHORT, run_dir=tmp_path / "run")).ending == "complete"
    before, after = (row["metrics"] for row in lines(tmp_path / "run" / "evaluations.jsonl"))
    assert after["all/reward/total"] > before["all/reward/total"] + 0.1
    assert {"all/rubric/right", "all/rubric/plain", "all/judge_failed"} <= after.keys()
    printed = capsys.readouterr().out
    for expected in ("reward    ", "What is ", "report.html"):
        assert expected in printed


def judged_by(reply: Any, asked: list[JudgeConfig]) -> Ports:
    @asynccontextmanager
    async def open_completer(config: JudgeConfig, *_: object, **__: object) -> AsyncIterator[Completer]:
        asked.append(config)
        yield ScriptedCompleter(reply)

    return Ports(open_completer=open_completer)  # type: ignore[arg-type]


@pytest.mark.local
def test_ones_own_tasks_and_two_judges_one_of_whom_often_says_nothing(tmp_path: Path) -> None:
    data = tmp_path / "tasks.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {n} + 5?"}) + "\n" for n in range(20)), encoding="utf-8")
    common = tmp_path / "rubric.json"
    common.write_text(
        json.dumps(["is kind", {"criterion": "is short", "weight": 2, "scale": [1, 5]}]), encoding="utf-8"
    )
    turn = 0

    def reply(messages: Sequence[Message]) -> str:
        nonlocal turn
        turn += 1
        return "Hm." if turn % 3 == 0 else "<score>1</score>"

    asked: list[JudgeConfig] = []
    config = attrs.evolve(
        SHORT,
        steps=2,
        warm_up=0,
        schedule=Schedule(groups_per_step=2),
        group_size=2,
        data=data,
        rubric=common,
        judge=JudgeConfig(model="one", attempts=1, on_failure="skip"),
        second_judge=JudgeConfig(model="two", attempts=1),
        run_dir=tmp_path / "run",
    )
    assert run(config, judged_by(reply, asked)).version == 2
    assert [each.model for each in asked] == ["one", "two"]
    row = lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["env/all/judge_failed"] > 0
    assert row["env/all/rubric/1"] == 1.0
    assert row["env/all/rubric/2"] == 0.0  # the lowest of 1 to 5


@pytest.mark.local
def test_a_judge_who_never_gives_a_verdict_ends_the_run(tmp_path: Path) -> None:
    config = attrs.evolve(
        SHORT, steps=1, warm_up=0, judge=JudgeConfig(model="mute", attempts=1), run_dir=tmp_path / "run"
    )
    with pytest.raises(ExceptionGroup) as failed:
        run(config, judged_by(lambda _: "Hm.", []))
    assert failed.group_contains(Exception, match="gave no verdict in 1 attempts")


def test_what_is_wrong_is_said_before_anything_is_made(tmp_path: Path) -> None:
    data = tmp_path / "tasks.jsonl"
    data.write_text('{"prompt": "Hello"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"judge\.model must be given"):
        rubric.Config(data=data)
    with pytest.raises(ValueError, match="both say what to train on"):
        rubric.Config(data=data, dataset="a/b", judge=JudgeConfig(model="x"))
    judge = JudgeConfig(model="x")
    config = rubric.Config(data=data, judge=judge, run_dir=tmp_path / "run")
    with pytest.raises(BadRow, match=r"tasks\.jsonl, line 1, field 'rubric' is missing"):
        run(config)
    with pytest.raises(ValueError, match=r"rubric: .*none\.json holds none"):
        run(attrs.evolve(config, rubric=tmp_path / "none.json"))
    common = tmp_path / "rubric.json"
    common.write_text('["is kind"]', encoding="utf-8")
    with pytest.raises(ValueError, match="has 1 tasks, too few"):
        run(attrs.evolve(config, rubric=common))
    assert not (tmp_path / "run").exists()


def test_defaults_follow_the_model() -> None:
    real = runs.defaults(rubric.Config, ["--model", "smollm2"], by_model=rubric.FOR_REAL_MODELS)
    assert (real.warm_up, real.lora_rank) == (0, 32)
