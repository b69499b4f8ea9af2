"""The supervised recipes, offline and to a result: what they learn, what they leave, how they go on, and what they say of bad data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from engine.data import DataError, Rows, rows_of
from engine.runtime import ActorsFailed
from engine.storage import list_checkpoints, select_checkpoint
from recipes import chat_sl, conversation_data, learning_rates, runs, sl_basic, sl_loop, tiny_chats
from recipes.ports import Ports

pytest.importorskip("torch")
pytestmark = pytest.mark.local

SHORT = chat_sl.Config(steps=6, batch_size=4, evaluate_every=2, checkpoint_every=2, held_out=4, show=1)


def run(config: Any, recipe: Any = chat_sl, **options: Any) -> Any:
    return anyio.run(lambda: recipe.run(config, **options))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(directory: Path) -> list[float]:
    return [row["train/mean_nll"] for row in lines(directory / "metrics.jsonl")]


def evaluations(directory: Path) -> list[dict[str, Any]]:
    return lines(directory / "evaluations.jsonl")


# --- what they learn


def test_chat_sl_learns_what_was_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(chat_sl.Config(steps=50, batch_size=16, held_out=24, run_dir=tmp_path, evaluate_every=50))
    first, last = result.evaluations
    assert first.metrics["nll"] > 5.5  # about the logarithm of the vocabulary's size
    assert last.metrics["nll"] < 0.8  # the command of the docs page goes on to less than 0.01
    assert 0 < last.metrics["bits_per_byte"] < last.metrics["nll"] / 0.69
    printed = capsys.readouterr().out
    for expected in ("nll       ", "held out  nll: ", "held-out questions, answers", "report.html", "(It "):
        assert expected in printed, expected


def test_sl_basic_and_sl_loop_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(sl_basic.Config(steps=24, batch_size=16, run_dir=tmp_path / "run"), sl_basic)
    assert [row["step"] for row in result.rows] == list(range(24))
    assert result.rows[-1]["train/mean_nll"] < 2.5 < 5 < result.rows[0]["train/mean_nll"]
    found = run(sl_loop.Config(steps=24, batch_size=16, save=tmp_path / "weights"), sl_loop)
    assert len(found) == 25
    assert found[-1] < 2.5 < 5 < found[0]
    assert (tmp_path / "weights" / "weights.safetensors").exists()
    assert "held out: " in capsys.readouterr().out


def test_the_loop_written_out_and_the_program_take_the_same_steps(tmp_path: Path) -> None:
    rate = attrs.evolve(sl_loop.Config(steps=5, batch_size=8), learning_rate=2e-3)
    by_hand = run(rate, sl_loop)[:5]
    config = chat_sl.Config(
        steps=5,
        batch_size=8,
        learning_rate=learning_rates.LearningRateConfig(peak=2e-3),
        held_out=64,
        show=0,
        run_dir=tmp_path,
    )
    run(config)
    assert losses(tmp_path) == pytest.approx(by_hand, rel=1e-5)


def test_made_chats_are_different_and_the_same_each_time() -> None:
    rows = [json.dumps(row) for row in tiny_chats.made_chats(500)]
    assert len(set(rows)) == 500
    assert rows == [json.dumps(row) for row in tiny_chats.made_chats(500)]


# --- going on


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_a_run_that_goes_on_repeats_and_skips_nothing(tmp_path: Path, ahead: int) -> None:
    """Whatever was submitted ahead when it ended: the same losses, the same evaluations, the same weights."""
    config = attrs.evolve(SHORT, ahead=ahead, prefetch=2, show=0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(attrs.evolve(config, run_dir=whole))
    run(attrs.evolve(config, run_dir=broken))
    for keep in (4, 2):
        kept = [line for line in lines(broken / "checkpoints.jsonl") if line["step"] <= keep]
        (broken / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        run(attrs.evolve(config, run_dir=broken, resume=True))
        assert losses(broken) == losses(whole)
        for mine, theirs in zip(evaluations(broken), evaluations(whole), strict=True):
            # What is scored together depends on the moment, and with it the last digits.
            assert mine == {**theirs, "metrics": pytest.approx(theirs["metrics"], rel=1e-5)}
        assert [event["step"] for event in lines(broken / "events.jsonl") if event["event"] == "resumed"][-1] == keep
    weights = [select_checkpoint(path).path / "trainer" / "weights.safetensors" for path in (whole, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_best_and_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(attrs.evolve(SHORT, steps=8, keep_checkpoints=1, keep_every=4, run_dir=tmp_path, show=0))
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [4, 8]
    assert select_checkpoint(tmp_path, "best").step == 8  # it falls all the way


# --- data


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}]}


def test_ones_own_file_and_a_model_by_path_with_adapters(tmp_path: Path) -> None:
    model = tiny_chats.make_chat_model(tmp_path / "model", 0)
    data = write(tmp_path / "chats.jsonl", [chat(f"word {n}") for n in range(20)])
    config = runs.defaults(chat_sl.Config, ["--model", str(model)], by_model=chat_sl.FOR_REAL_MODELS)
    assert config.lora_rank == 16
    config = attrs.evolve(
        config, renderer="role_colon", data=data, run_dir=tmp_path / "run", batch_size=6, minibatch_tokens=60, show=0
    )
    result = run(config)
    assert (result.version, result.ending) == (3, "complete")
    assert [row["optim/datums"] for row in result.rows] == [6, 6, 6]
    assert all(row["optim/minibatches"] > 1 for row in result.rows)
    assert len(result.evaluations) == 2  # a tenth is held out: two conversations, before and after
    # The learning rate is that of its shape: hidden size 64, a Llama, LoRA.
    assert result.rows[0]["optim/lr"] == pytest.approx(5e-4 * (2000 / 64) ** 0.781 / 3)


def test_rows_that_do_not_fit_are_an_error_or_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [chat(f"word {n}") for n in range(8)]
    rows[3] = {"messages": [{"role": "assistant", "content": "x"}]}
    rows[5] = chat("long " * 100)
    data = write(tmp_path / "chats.jsonl", rows)
    config = attrs.evolve(SHORT, data=data, held_out=0, steps=4, batch_size=4, max_tokens=64)
    with pytest.raises(ActorsFailed) as caught:
        run(attrs.evolve(config, run_dir=tmp_path / "a"))
    assert "chats.jsonl, line 4: roles out of order" in str(caught.value.exceptions[0])
    run(attrs.evolve(config, on_bad_row="skip", run_dir=tmp_path / "b"))
    metrics = lines(tmp_path / "b" / "metrics.jsonl")
    assert sum(row["data/bad_rows"] for row in metrics) == 2  # two epochs
    assert sum(row["data/truncated"] for row in metrics) == 2
    printed = capsys.readouterr().out
    assert "of 16 rows 2 did not fit and were left out, 2 examples were cut short" in printed
    assert "chats.jsonl, line 4: roles out of order" in printed


def config_of(**options: Any) -> conversation_data.ConversationConfig:
    return conversation_data.ConversationConfig(**options)


def test_what_is_held_out() -> None:
    made = tiny_chats.made_chats(50)
    asked: list[tuple[str, str | None]] = []

    def load(source: Any, *, split: str | None = None, **options: Any) -> Rows:
        asked.append((str(source), split))
        return rows_of([chat(f"{source} {split} {n}") for n in range(30)], f"{source}[{split}]")

    def held_out(**options: Any) -> tuple[int, int | None]:
        train, test = conversation_data.load_conversations(config_of(**options), load, made)
        return len(train), None if test is None else len(test)

    assert held_out() == (45, 5)
    assert held_out(held_out=0) == (50, None)
    assert held_out(held_out=20, limit=40) == (20, 20)
    assert asked == []
    assert held_out(dataset="no_robots") == (30, 30)
    assert held_out(dataset="no_robots", held_out=7) == (30, 7)
    assert held_out(dataset="no_robots", held_out=0) == (30, None)
    assert held_out(dataset="tulu3") == (27, 3)
    assert held_out(data=Path("a.jsonl"), test_data=Path("b.jsonl")) == (30, 30)
    assert asked == [
        ("no_robots", "train"),
        ("no_robots", "test"),
        ("no_robots", "train"),
        ("no_robots", "test"),
        ("no_robots", "train"),
        ("tulu3", "train"),
        ("a.jsonl", None),
        ("b.jsonl", None),
    ]
    with pytest.raises(DataError, match="made chats has 50 rows, and --held-out would take 50"):
        held_out(held_out=50)
    with pytest.raises(ValueError, match="both say what to train on"):
        config_of(dataset="x/y", data=Path("a.jsonl"))


def test_rows_come_from_the_ports(tmp_path: Path) -> None:
    def load(source: Any, **options: Any) -> Rows:
        assert source == "somebody/chats"
        return rows_of([chat(f"word {n}") for n in range(20)], "somebody/chats[train]")

    config = attrs.evolve(SHORT, dataset="somebody/chats", steps=2, run_dir=tmp_path, show=0)
    assert run(config, ports=Ports(load_rows=load)).version == 2


# --- the command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "missing.jsonl"], "chat_sl: missing.jsonl does not exist\n"),
        (
            ["--model", "Foo/Bar"],
            "chat_sl: --learning-rate.peak must be given: no learning rate is known for 'Foo/Bar'",
        ),
        (
            ["--data", "a.jsonl", "--dataset", "no_robots"],
            "chat_sl: --dataset: cannot be given beside --data: both say what to train on",
        ),
        (["--batch-size", "0"], "chat_sl: --batch-size: must be at least 1, not 0"),
        (["--train-on", "everything"], "chat_sl: --train-on: must be one of"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", "recipes.chat_sl", "--run-dir", str(tmp_path / "run"), *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
