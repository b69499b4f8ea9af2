"""The main job, end to end on the real backend, but short; that it learns in two minutes is measured, not tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors import Schedule
from engine.rendering import get_renderer
from engine.telemetry.record import RunRecord
from envs.arithmetic import Difficulty, Problem
from recipes import rl_loop, runs, summary, tiny

SHORT = rl_loop.Config(
    steps=4,
    schedule=Schedule(groups_per_step=4),
    group_size=4,
    warm_up=15,
    evaluate_every=2,
    evaluation_problems=4,
    checkpoint_every=2,
)


def run(config: rl_loop.Config) -> Any:
    pytest.importorskip("torch")
    return anyio.run(rl_loop.run, config)


def defaults(args: list[str]) -> rl_loop.Config:
    return runs.defaults(rl_loop.Config, args, by_model=rl_loop.FOR_REAL_MODELS)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewards(directory: Path) -> list[float]:
    return [row["env/all/reward/total"] for row in lines(directory / "metrics.jsonl")]


@pytest.mark.local
def test_a_run_leaves_everything_that_was_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    result = run(attrs.evolve(SHORT, run_dir=directory))
    assert result.ending == "complete"
    assert [row["step"] for row in lines(directory / "metrics.jsonl")] == [0, 1, 2, 3]
    assert [row["step"] for row in lines(directory / "evaluations.jsonl")] == [0, 2, 4]
    nll = [row["train/mean_nll"] for row in lines(directory / "warm_up" / "metrics.jsonl")]
    assert len(nll) == 15
    assert nll[-1] < nll[0] / 2  # the worked examples teach at least which tokens an answer is made of
    assert (directory / "report.html").stat().st_size > 1000
    assert (directory / "reward.svg").read_text(encoding="utf-8").startswith("<svg")
    printed = capsys.readouterr().out
    for expected in ("step 4/4", "before (step 1)", "after (step 4)", "What is ", "reward.svg", "report.html"):
        assert expected in printed
    # Again: nothing is left to do, and nothing is written twice.
    before = rewards(directory)
    again = run(attrs.evolve(SHORT, run_dir=directory, resume=True))
    assert again.version == 4
    assert rewards(directory) == before


@pytest.mark.local
def test_a_stopped_run_goes_on_and_gives_what_an_unbroken_one_gives(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(attrs.evolve(SHORT, run_dir=whole))
    # The rate falls over the run's length, so the broken run must know of all its steps: it is cut off by dropping what came after a checkpoint.
    run(attrs.evolve(SHORT, run_dir=broken))
    for name in ("checkpoints.jsonl",):
        kept = [line for line in lines(broken / name) if line["step"] <= 2]
        (broken / name).write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    run(attrs.evolve(SHORT, run_dir=broken, resume=True))
    assert rewards(broken) == rewards(whole)
    assert [row["step"] for row in lines(broken / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.local
@pytest.mark.parametrize(
    "schedule", [Schedule(4, minibatches=2), Schedule(4, max_staleness=2)], ids=["streaming", "async"]
)
def test_other_modes(tmp_path: Path, schedule: Schedule) -> None:
    directory = tmp_path / "run"
    result = run(attrs.evolve(SHORT, run_dir=directory, schedule=schedule, warm_up=5, steps=3))
    assert (result.ending, result.version) == ("complete", 3)
    assert max(row["staleness/max"] for row in lines(directory / "metrics.jsonl")) <= schedule.max_staleness


@pytest.mark.local
def test_a_model_of_ones_own_by_path(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = tiny.make_model(tmp_path / "model", seed=0)
    config = attrs.evolve(
        defaults(["--model", str(model)]),
        renderer="role_colon",
        steps=2,
        schedule=Schedule(groups_per_step=2),
        group_size=2,
        evaluation_problems=2,
        examples=1,
        run_dir=tmp_path / "run",
    )
    assert (config.lora_rank, config.warm_up) == (16, 0)
    assert run(config).version == 2
    assert not (tmp_path / "run" / "warm_up").exists()


def test_defaults_follow_the_model() -> None:
    assert defaults([]) == rl_loop.Config()
    for args in (["--model", "smollm2"], ["--model=smollm2"]):
        assert (defaults(args).model, defaults(args).warm_up) == ("smollm2", 0)


def test_a_resumed_run_starts_from_its_own_configuration(tmp_path: Path) -> None:
    config = attrs.evolve(SHORT, run_dir=tmp_path, difficulty=Difficulty(("add", "subtract"), digits=3))
    (tmp_path / "config.json").write_text(json.dumps(rl_loop.cli.unstructure(config)), encoding="utf-8")
    assert defaults(["--resume", "--run-dir", str(tmp_path)]) == config
    assert defaults([f"--run-dir={tmp_path}"]) == rl_loop.Config()


@pytest.mark.parametrize(
    ("text", "said"), [('{"steps": ', "Expecting value"), ('{"foo": 1}', "extra fields found (foo)")]
)
def test_a_damaged_configuration_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        defaults(["--resume", "--run-dir", str(tmp_path)])
    assert f"{tmp_path}/config.json: " in str(ended.value)
    assert said in str(ended.value)


def test_resume_asks_which_run() -> None:
    with pytest.raises(ValueError, match="--run-dir"):
        rl_loop.Config(resume=True)


def test_the_tiny_tokenizer_writes_any_text_and_the_question_in_few_tokens() -> None:
    tokenizer = tiny.make_tokenizer()
    for text in ("What is 47 + 5?", "Привет\n", "<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("User: What is 47 + 5?\n\nAssistant:").ids) == 6
    assert len(tokenizer.encode(" 52\n\nUser:").ids) == 4


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (Problem("add", 47, 5), 42),
        (Problem("add", 95, 8), 93),
        (Problem("subtract", 42, 5), 47),
        (Problem("multiply", 13, 4), 42),
        (Problem("multiply", 12, 4), 48),
        (Problem("add", 44, 5), 49),
    ],
)
def test_the_pupil_forgets_the_carry_and_nothing_else(problem: Problem, answer: int) -> None:
    assert tiny.forgetful(problem) == answer


def test_worked_examples_train_the_answer_alone() -> None:
    tokenizer = tiny.make_tokenizer()
    examples = tiny.WorkedExamples(get_renderer("role_colon", tokenizer), Difficulty(digits_right=1), 3, batch_size=200)
    batch, again = examples[1], examples[1]
    assert len(batch) == 200
    wrong = 0
    for datum, same in zip(batch, again, strict=True):
        assert datum.model_input == same.model_input
        targets, weights = datum.loss_inputs["target_tokens"], datum.loss_inputs["weights"]
        answer = tokenizer.decode(targets[weights > 0].tolist())
        assert answer.endswith("\n\nUser:")
        left, _, right = (
            tokenizer.decode(targets[weights == 0].tolist()).removeprefix("User: ").split("?")[0].split()[-3:]
        )
        wrong += int(answer.split()[0]) != int(left) + int(right)
    assert 0.4 < wrong / 200 < 0.64  # 0.8 carry, and of those 0.65 forget


def test_a_summary_of_nothing_is_nothing() -> None:
    assert summary.learnt(RunRecord("run", None, [], [], [], [])) == []
