"""A run's weights in other hands: as the beginning of another run, listed, deleted, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np
import pytest

from engine.backends.values import ModelInput
from engine.storage import list_checkpoints
from engine.storage.run_directory import RunDirectory, RunDirectoryError
from recipes import chat_sl, checkpoints, export, learning_rates, models, run_models, runs
from recipes.ports import Ports

pytest.importorskip("torch")
pytestmark = pytest.mark.local

SHORT = chat_sl.Config(steps=4, batch_size=4, evaluate_every=2, checkpoint_every=2, held_out=4, show=0)
TEXT = ModelInput.from_tokens([5, 6, 7, 8, 9, 10, 11])


def train(config: chat_sl.Config, **options: Any) -> Any:
    return anyio.run(lambda: chat_sl.run(config, **options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints after two and four."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    train(attrs.evolve(SHORT, run_dir=directory))
    return directory


@pytest.fixture(scope="module")
def with_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "adapters"
    train(attrs.evolve(SHORT, lora_rank=2, run_dir=directory))
    return directory


@pytest.fixture
def mine(finished: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    shutil.copytree(finished, tmp_path / "mine")
    return tmp_path / "mine"


def scores(config: models.ModelConfig, directory: Path) -> np.ndarray[Any, Any]:
    """Logprobs of a text under the model as it is opened."""

    async def score() -> Any:
        async with models.open_model(config, directory) as opened:
            snapshot = await opened.backend.snapshot().result()
            return await opened.backend.compute_logprobs(snapshot, TEXT)

    return anyio.run(score)[1:]


# --- beginning with a run's weights


def test_which_checkpoint_is_meant(finished: Path) -> None:
    found = {said: run_models.find_run_model(f"{finished}{said}") for said in ("", "@latest", "@best", "@2")}
    assert {said: model and model.checkpoint().step for said, model in found.items()} == {
        "": 4,
        "@latest": 4,
        "@best": 4,
        "@2": 2,
    }
    assert run_models.find_run_model("tiny") is None
    assert run_models.find_run_model("Qwen/Qwen3-8B") is None
    assert run_models.find_run_model(str(finished / "model")) is None
    with pytest.raises(ValueError, match="stands latest, best or a step, not 'worst'"):
        run_models.find_run_model(f"{finished}@worst")
    with pytest.raises(RunDirectoryError, match="no checkpoint of step 3; there are 2, 4"):
        run_models.RunModel(finished, 3, {}).checkpoint()


@pytest.mark.parametrize("kind", ["finished", "with_adapters"])
def test_a_model_opened_from_a_run_has_the_runs_weights(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(kind)
    seen = [scores(models.ModelConfig(model=f"{run}@{step}"), tmp_path) for step in (2, 4)]
    assert np.abs(seen[0] - seen[1]).max() > 1e-3
    # The same by way of an export, which nothing of the run's machinery reads.
    export.main(export.Config(run=run, checkpoint="2", out=tmp_path / "out"))
    exported = scores(models.ModelConfig(model=str(tmp_path / "out"), renderer="role_colon"), tmp_path)
    np.testing.assert_allclose(exported, seen[0], atol=2e-5)


def test_a_run_that_begins_with_anothers_weights(mine: Path, tmp_path: Path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    train(attrs.evolve(SHORT, model=str(mine), run_dir=second, steps=2))
    settings = json.loads((second / "config.json").read_text())
    assert settings["model"] == f"{mine.resolve()}@4"  # the checkpoint of now, whatever comes later

    def evaluations(directory: Path) -> list[float]:
        return [
            json.loads(line)["metrics"]["nll"] for line in (directory / "evaluations.jsonl").read_text().splitlines()
        ]

    assert evaluations(second)[0] == pytest.approx(evaluations(mine)[-1], rel=1e-5)
    rows = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    # And one from that one: the base beneath both is the first's.
    assert run_models.RunModel(second, "latest", settings).base() == ("tiny", mine.resolve())
    train(attrs.evolve(SHORT, model=f"{second}@2", run_dir=third, steps=2))
    assert evaluations(third)[0] == pytest.approx(evaluations(second)[-1], rel=1e-5)
    # Gone on with when the checkpoint it began with is no longer there: it has its own.
    shutil.rmtree(second / "checkpoints")
    train(
        attrs.evolve(runs.defaults(chat_sl.Config, ["--resume", "--run-dir", str(third)]), run_dir=third, resume=True)
    )
    with pytest.raises(RunDirectoryError, match="has no checkpoint left"):
        scores(models.ModelConfig(model=str(second)), tmp_path)


def test_flags_start_from_what_the_run_had(with_adapters: Path, finished: Path) -> None:
    config = runs.defaults(chat_sl.Config, ["--model", str(with_adapters)], by_model=chat_sl.FOR_REAL_MODELS)
    assert (config.model, config.lora_rank, config.batch_size) == (str(with_adapters), 2, 32)
    config = runs.defaults(chat_sl.Config, ["--model", str(finished)], by_model=chat_sl.FOR_REAL_MODELS)
    assert config.lora_rank is None
    rate = learning_rates.LearningRateConfig()
    assert rate.peak_for(config) == pytest.approx(5e-5 * (2000 / 64) ** 0.781)


def test_what_does_not_fit_the_runs_weights(finished: Path, with_adapters: Path, tmp_path: Path) -> None:
    for run, rank in ((finished, 4), (with_adapters, 4)):
        with pytest.raises(
            ValueError, match=r"lora_rank (None|2), which lora_rank 4 cannot go on from: .*recipes\.export"
        ):
            scores(models.ModelConfig(model=str(run), lora_rank=rank), tmp_path)
    with pytest.raises(ValueError, match="backend local, which backend openai_compatible cannot go on from"):
        scores(models.ModelConfig(model=str(finished), backend="openai_compatible"), tmp_path)


# --- the checkpoints command


def command(config: checkpoints.Config, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    checkpoints.main(config)
    return capsys.readouterr().out


def test_listing_says_what_is_there(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = command(checkpoints.Config(run=finished, verify=True), capsys)
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert rows[0][:2] == ["step", "saved"]
    assert "held out/nll" in printed
    assert [(row[0], row[-1]) for row in rows[1:]] == [("2", "whole"), ("4", "whole")]
    assert "latest best" in printed.splitlines()[-1]
    shown = command(checkpoints.Config(run=finished, show="2", verify=True), capsys)
    for expected in ("step       2", "held out/nll ", "held out/bits_per_byte ", "--model", "@2", "files      whole"):
        assert expected in shown
    assert "step       4 latest best" in command(checkpoints.Config(run=finished, show="best"), capsys)
    with pytest.raises(ValueError, match="show takes latest, best or a step, not 'worst'"):
        checkpoints.main(checkpoints.Config(run=finished, show="worst"))


def test_damage_is_seen(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = mine / "checkpoints" / "000002" / "trainer" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "DAMAGED: trainer/weights.safetensors is damaged" in command(
        checkpoints.Config(run=mine, verify=True), capsys
    )


def test_deleting(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunDirectoryError, match="no checkpoint of step 3"):
        checkpoints.main(checkpoints.Config(run=mine, delete=(2, 3)))
    assert len(list_checkpoints(mine)) == 2  # nothing is gone where one of them is wrong
    with RunDirectory(mine, resume=True), pytest.raises(RunDirectoryError, match="in use by another process"):
        checkpoints.main(checkpoints.Config(run=mine, delete=(2,)))
    printed = command(checkpoints.Config(run=mine, delete=(4,)), capsys)
    assert "deleted checkpoint 4" in printed
    assert "goes on from step 2, and does the steps since then again" in printed
    train(attrs.evolve(SHORT, run_dir=mine, resume=True))
    assert [checkpoint.step for checkpoint in list_checkpoints(mine)] == [2, 4]
    assert "has no checkpoint left" in command(checkpoints.Config(run=mine, delete=(2, 4)), capsys)


# --- the export command


def test_exports_by_the_command(with_adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export.main(export.Config(run=with_adapters, format="peft", checkpoint="best", out=tmp_path / "lora"))
    printed = capsys.readouterr().out
    assert "LoRA adapters of" in printed
    assert "from step 4" in printed
    assert "no chat template" in printed
    assert "(role_colon)" in printed
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(with_adapters / "model")


def test_what_the_export_command_refuses(finished: Path, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no directory of a run: it has no config\.json"):
        export.main(export.Config(run=tmp_path, out=tmp_path / "out"))
    with pytest.raises(RunDirectoryError, match="no checkpoint of step 3"):
        export.main(export.Config(run=finished, checkpoint="3", out=tmp_path / "out"))
    settings = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**settings, "backend": "tinker"}))
    with pytest.raises(
        ValueError, match="was trained on the backend tinker, whose weights are not in its run directory"
    ):
        export.main(export.Config(run=mine, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ports_open_runs_too(finished: Path, tmp_path: Path) -> None:
    """What recipes are given as `open_model` and `open_completer` takes a run like any model."""
    from engine.backends.values import SamplingParams
    from engine.rendering import user

    async def ask() -> str:
        config = models.ModelConfig(model=str(finished))
        async with Ports().open_completer(config, tmp_path) as completer:
            return (await completer.complete([user("Hello?")], params=SamplingParams(max_tokens=3), seed=0)).text

    assert isinstance(anyio.run(ask), str)
