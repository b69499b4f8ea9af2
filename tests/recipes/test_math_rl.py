"""math_rl: a tiny model learns to carry and to box; problems from files with the fields of GSM8K, MATH, Polaris and DeepMath; errors before anything is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors.schedule import Schedule
from engine.data import BadRow, DataError, rows_of
from envs.grading import MathGrader
from envs.math_problems import MathForm
from recipes import math_rl, runs
from recipes.ports import Ports

SHORT = math_rl.Config(
    steps=2, schedule=Schedule(groups_per_step=2), group_size=4, warm_up=4, evaluate_every=2, evaluation_problems=4
)
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {"question": f"Ann has {n} apples and buys 1,000 more. How many?", "answer": f"{n} + 1000\n#### 1,{n:03}"}
        for n in range(20)
    ],
    "math": [
        {"problem": f"What is ${n}/4$?", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{4}}}}$.", "level": f"Level {n % 5 + 1}", "type": "Prealgebra"}
        for n in range(20)
    ],
    "polaris": [{"problem": f"What is {n}^2?", "answer": str(n * n), "difficulty": f"{n % 8}/8"} for n in range(20)],
    "deepmath": [
        {"question": f"What is $\\sqrt{{{n * n}}}$?", "final_answer": str(n), "difficulty": 5.0, "topic": "Mathematics -> Algebra", "r1_solution_1": "..."}
        for n in range(20)
    ],
}  # fmt: skip
ANSWER = {"gsm8k": "1,003", "math": "0.75", "polaris": "9", "deepmath": "3"}


def run(config: math_rl.Config, ports: Ports | None = None) -> Any:
    pytest.importorskip("torch")
    return anyio.run(math_rl.run, config, ports or Ports())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".parquet":
        pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.local
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    result = run(attrs.evolve(SHORT, run_dir=directory))
    assert (result.ending, result.version) == ("complete", 2)
    row = lines(directory / "metrics.jsonl")[0]
    assert {"env/all/correct", "env/all/format", "env/all/grading_failed", "env/carry/correct"} <= row.keys()
    evaluations = lines(directory / "evaluations.jsonl")
    assert [evaluation["step"] for evaluation in evaluations] == [0, 2]
    assert {"all/correct", "all/format", "all/reward/total"} <= evaluations[0]["metrics"].keys()
    assert "What is " in capsys.readouterr().out
    assert json.loads((directory / "config.json").read_text())["form"]["boxed"] is True


@pytest.mark.local
@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """A quarter of the default run: from a pupil who mostly forgets to carry, and half of the boxes, to one who forgets neither. (Seeds 0 to 5: from .01-.17 to .45-.84 in 12 steps.)"""
    config = math_rl.Config(steps=10, warm_up=160, evaluate_every=10, evaluation_problems=64)
    config = attrs.evolve(config, schedule=Schedule(groups_per_step=16), group_size=16)
    run(attrs.evolve(config, run_dir=tmp_path / "run"))
    before, after = (row["metrics"] for row in lines(tmp_path / "run" / "evaluations.jsonl"))
    assert after["all/reward/total"] > before["all/reward/total"] + 0.2
    assert after["all/format"] > 0.8


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("env", ROWS)
def test_local_files_with_the_fields_of_the_data_sets(env: Any, suffix: str, tmp_path: Path) -> None:
    config = math_rl.Config(env=env, data=write(ROWS[env], tmp_path / f"mine{suffix}"), evaluation_problems=3)
    train, test = math_rl._problems(config, Ports())
    assert (len(train), len(test)) == (17, 3)
    asked = {train[n].question for n in range(17)} | {test[n].question for n in range(3)}
    assert len(asked) == 20
    whole, _ = math_rl._problems(attrs.evolve(config, test_data=config.data), Ports())
    grade = anyio.run(MathGrader(None).grade, f"\\boxed{{{ANSWER[env]}}}", whole[3].answer)
    assert grade.score == 1.0
    assert bool(whole[3].tags) == (env != "gsm8k")


def test_known_sets_are_tested_on_their_own_test_sets() -> None:
    asked: list[tuple[Any, ...]] = []

    def load(source: Any, *, split: str | None = None, **options: Any) -> Any:
        asked.append((source, split))
        return rows_of(
            ROWS["math"] if "math" in str(source) else ROWS["gsm8k"],
            schema=options.get("schema") or source.removesuffix("500"),
        )

    for env in ("gsm8k", "math"):
        train, test = math_rl._problems(math_rl.Config(env=env, evaluation_problems=7), Ports(load_rows=load))  # type: ignore[arg-type]
        assert (len(train), len(test)) == (20, 7)
    assert asked == [("gsm8k", None), ("gsm8k", "test"), ("math", None), ("math500", "test")]


@pytest.mark.local
def test_a_run_on_a_file(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    data = write(ROWS["math"], tmp_path / "mine.jsonl")
    config = attrs.evolve(SHORT, env="math", data=data, form=MathForm(few_shot=0, instruction=""), max_tokens=8)
    result = run(attrs.evolve(config, run_dir=tmp_path / "run", grading=math_rl.GradingConfig(workers=1)))
    assert result.ending == "complete"
    row = lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["env/prealgebra/grading_failed"] == 0.0


def test_errors_come_before_anything_is_made(tmp_path: Path) -> None:
    made = tmp_path / "run"
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        anyio.run(math_rl.run, math_rl.Config(env="gsm8k", data=tmp_path / "none.jsonl", run_dir=made))
    bad = write([*ROWS["gsm8k"][:6], {"question": "?", "answer": "no mark"}], tmp_path / "bad.jsonl")
    with pytest.raises(BadRow, match=r"bad\.jsonl, line 7, field 'answer': no answer after ####"):
        anyio.run(math_rl.run, math_rl.Config(env="gsm8k", data=bad, run_dir=made))
    skipping = math_rl.Config(env="gsm8k", data=bad, on_bad_row="skip")
    assert [len(part) for part in math_rl._problems(skipping, Ports())] == [5, 1]
    few = write(ROWS["gsm8k"][:3], tmp_path / "few.jsonl")
    with pytest.raises(ValueError, match="too few to hold some out: give --test-data"):
        anyio.run(math_rl.run, math_rl.Config(env="gsm8k", data=few, run_dir=made))
    with pytest.raises(ValueError, match="data needs --env"):
        math_rl.Config(data=few)
    assert not made.exists()


def test_defaults_follow_the_model() -> None:
    tiny = runs.defaults(math_rl.Config, [], by_model=math_rl.FOR_REAL_MODELS)
    real = runs.defaults(math_rl.Config, ["--model", "x/y"], by_model=math_rl.FOR_REAL_MODELS)
    assert (tiny.form.instruction, tiny.warm_up) == ("", 200)
    assert (real.form.instruction, real.warm_up, real.lora_rank) == (MathForm().instruction, 0, 32)
