"""The recipes of preference, at the smallest sizes that show a result; the reference policy of a resumed run; wrong flags and bad data."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors import Schedule
from engine.completion import Completer, ScriptedCompleter
from engine.data import DataError
from engine.rendering import Message, assistant, user
from recipes import runs, tiny_lists
from recipes.judging import JudgeConfig
from recipes.learning_rates import LearningRateConfig
from recipes.ports import Ports
from recipes.preference import dpo, reward_model, rlhf, shorter
from recipes.preference.stages import PreferenceStage, SftStage
from recipes.summary import evaluations_learnt

DPO = dpo.Config(steps=24, warm_up=40, batch_size=40, held_out=48, evaluate_every=12, checkpoint_every=12, show=1)
ANIMALS = tiny_lists.KINDS["animals"]
NO_SFT = SftStage(steps=0)
FEW = Schedule(groups_per_step=4)


def run(recipe: Any, config: Any, directory: Path, ports: Ports | None = None) -> Any:
    pytest.importorskip("torch")
    config = attrs.evolve(config, run_dir=directory)
    return anyio.run(recipe.run, config, *([ports] if ports is not None else []))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(directory: Path, name: str, metric: str) -> list[float]:
    rows = lines(directory / "evaluations.jsonl")
    return [row["metrics"][metric] for row in sorted(rows, key=lambda row: row["step"]) if row["name"] == name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPO run from beginning to end."""
    directory = tmp_path_factory.mktemp("dpo") / "whole"
    assert run(dpo, DPO, directory).ending == "complete"
    return directory


@pytest.mark.local
def test_dpo_raises_margin_and_accuracy(whole: Path) -> None:
    # At first the policy is the reference: no margin but rounding, so that which of a pair has the larger reward means nothing yet.
    before, *_, after = evaluated(whole, dpo.HELD_OUT, "margin")
    assert before == pytest.approx(0, abs=1e-3)
    assert after > 0.75
    assert evaluated(whole, dpo.HELD_OUT, "accuracy")[-1] > 0.75
    assert evaluated(whole, dpo.HELD_OUT, "dpo_loss")[0] == pytest.approx(0.6931, abs=1e-3)
    assert evaluated(whole, dpo.HELD_OUT, "dpo_loss")[-1] < 0.6
    rows = lines(whole / "metrics.jsonl")
    assert {"dpo_loss", "accuracy", "margin", "chosen_reward", "rejected_reward"} <= rows[0].keys()
    assert rows[0]["data/rows"] == 40
    said = "\n".join(evaluations_learnt(whole))
    assert "held out  margin: " in said
    assert (whole / "report.html").stat().st_size > 1000


@pytest.mark.local
def test_a_resumed_dpo_run_keeps_the_original_reference(whole: Path, tmp_path: Path) -> None:
    """Cut back to its checkpoint at step 12 and resumed, it trains as the whole run did. With the resumed policy as reference its margin would begin at 0 again."""
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    kept = [line for line in lines(broken / "checkpoints.jsonl") if line["step"] <= 12]
    (broken / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    run(dpo, attrs.evolve(DPO, resume=True, run_dir=broken), broken)
    wanted = [row["margin"] for row in lines(whole / "metrics.jsonl")]
    found = [row["margin"] for row in lines(broken / "metrics.jsonl")]
    assert wanted[12] > 0.3
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert evaluated(broken, dpo.HELD_OUT, "margin") == pytest.approx(
        evaluated(whole, dpo.HELD_OUT, "margin"), rel=1e-3, abs=1e-3
    )


def file_of(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


GOOD = [{"prompt": f"Is {n} fine?", "chosen": "good", "rejected": "bad"} for n in range(40)]


@pytest.mark.local
def test_a_preference_model_learns_from_ones_own_comparisons(tmp_path: Path) -> None:
    config = reward_model.Config(
        data=file_of(tmp_path / "pairs.jsonl", *GOOD),
        held_out=8,
        training=PreferenceStage(steps=25, batch_size=16, learning_rate=LearningRateConfig(peak=3e-3)),
        sft=NO_SFT,
    )
    directory = tmp_path / "run"
    assert run(reward_model, config, directory).version == 25
    assert evaluated(directory, "agreement", "accuracy")[-1] == 1.0
    assert abs(evaluated(directory, "agreement", "first_bias")[-1]) < 0.2
    # And a policy is trained against it: that run's model, not one of this run.
    against = rlhf.Config(
        preference_run=directory,
        sft=NO_SFT,
        steps=1,
        schedule=FEW,
        group_size=2,
        held_out=4,
        limit=60,
        evaluate_every=100,
    )
    assert run(rlhf, against, tmp_path / "rlhf").version == 1
    assert not (tmp_path / "rlhf" / rlhf.PREFERENCE).exists()


def fond_of_animals(asked: list[str]) -> Ports:
    """A judge to whom the answer with more different animals is the better one, whatever was asked; nothing can be made of each tenth reply."""

    def reply(messages: Sequence[Message]) -> str:
        text = messages[-1].text
        asked.append(text)
        if len(asked) % 10 == 0:
            return "I like both."
        a, b = (
            sum(animal in text.partition(f"<{tag}>\n")[2].partition(f"\n</{tag}>")[0] for animal in ANIMALS)
            for tag in ("answer_a", "answer_b")
        )
        return f"Counted. <verdict>{'A' if a > b else 'B' if b > a else 'TIE'}</verdict>"

    @asynccontextmanager
    async def open_completer(*_: object, **__: object) -> AsyncIterator[Completer]:
        yield ScriptedCompleter(reply)

    return Ports(open_completer=open_completer)


@pytest.mark.local
def test_rlhf_raises_the_win_rate_under_a_judge(tmp_path: Path) -> None:
    config = rlhf.Config(
        judge=JudgeConfig(model="scripted"),
        sft=SftStage(steps=40),
        steps=5,
        schedule=Schedule(groups_per_step=12),
        held_out=48,
        evaluate_every=100,
    )
    asked: list[str] = []
    directory = tmp_path / "run"
    result = run(rlhf, config, directory, fond_of_animals(asked))
    assert result.ending == "complete"
    before, after = evaluated(directory, "win rate", "win_rate")
    assert before == 0.5
    assert after > 0.65
    row = lines(directory / "metrics.jsonl")[-1]
    assert row["env/preference/comparisons"] == 4.0
    assert row["env/preference/comparisons_failed"] == 0.0
    assert "kl_policy_base" in row
    assert len(asked) > 5 * 12 * 8  # most of a group's 16 comparisons, in both orders


@pytest.mark.local
def test_all_three_stages_and_their_resume(tmp_path: Path) -> None:
    config = rlhf.Config(
        sft=SftStage(steps=3, batch_size=4),
        preference_model=PreferenceStage(steps=3, batch_size=4, evaluate_every=100),
        steps=2,
        schedule=FEW,
        group_size=2,
        held_out=4,
        evaluate_every=100,
        baseline="data",
    )
    directory = tmp_path / "run"
    assert run(rlhf, config, directory).version == 2
    before = lines(directory / "metrics.jsonl")
    assert [row["step"] for row in before] == [0, 1]
    assert len(lines(directory / rlhf.SFT / "metrics.jsonl")) == 3
    assert len(lines(directory / rlhf.PREFERENCE / "metrics.jsonl")) == 3
    assert [row["step"] for row in lines(directory / rlhf.PREFERENCE / "evaluations.jsonl")] == [0, 3]
    # Again: nothing is left to do in any stage, and nothing is written twice.
    assert run(rlhf, attrs.evolve(config, resume=True, run_dir=directory), directory).version == 2
    assert lines(directory / "metrics.jsonl") == before
    assert len(lines(directory / rlhf.PREFERENCE / "metrics.jsonl")) == 3


@pytest.mark.local
def test_shorter_answers_get_shorter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = shorter.Config(steps=8, warm_up=40, held_out=48, evaluate_every=100)
    directory = tmp_path / "run"
    assert run(shorter, config, directory).ending == "complete"
    before, after = evaluated(directory, "win rate", "answer_tokens")
    assert after < before - 2
    assert evaluated(directory, "win rate", "win_rate")[1] > 0.5
    printed = capsys.readouterr().out
    for expected in ("win rate  answer_tokens: ", "before (step 1): answers", "report.html"):
        assert expected in printed


# ---- what is wrong


@pytest.mark.local
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "q", "chosen": "same", "rejected": "same"},
            r"line 41: the chosen and the rejected answer are the same",
        ),
        ({"chosen": "good", "rejected": "bad"}, r"line 41, field 'prompt' is missing"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "good", "rejected": "bad"}, "roles out of order"),
        (
            {"prompt": "q", "chosen": "x" * 200, "rejected": "bad"},
            r"line 41: the chosen answer has .* more than the limit",
        ),
    ],
)
def test_bad_rows_end_a_dpo_run_in_one_line_or_are_counted(row: object, message: str, tmp_path: Path) -> None:
    config = attrs.evolve(
        DPO,
        data=file_of(tmp_path / "pairs.jsonl", *GOOD, row),
        held_out=0,
        warm_up=0,
        steps=1,
        batch_size=41,
        max_tokens=100,
    )
    with pytest.raises(ExceptionGroup) as failed:
        run(dpo, config, tmp_path / "strict")
    assert failed.group_contains(ValueError, match=message)
    lenient = attrs.evolve(config, on_bad_row="skip", too_long="skip")
    assert run(dpo, lenient, tmp_path / "lenient").version == 1
    (step,) = lines(tmp_path / "lenient" / "metrics.jsonl")
    assert step["data/bad_rows"] + step["data/too_long"] == 1
    assert step["optim/datums"] == 80


@pytest.mark.local
def test_a_run_that_is_no_reward_model_is_refused(tmp_path: Path, whole: Path) -> None:
    config = rlhf.Config(preference_run=whole, sft=NO_SFT, held_out=4)
    with pytest.raises(ValueError, match=r"config\.json is of another recipe"):
        run(rlhf, config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"config\.json cannot be read .* the directory of a run is wanted"):
        runs.configuration(tmp_path / "nowhere", reward_model.Config)


def test_too_little_data_is_said_before_a_model_is_opened(tmp_path: Path) -> None:
    config = attrs.evolve(DPO, data=file_of(tmp_path / "pairs.jsonl", *GOOD[:3]), held_out=5)
    with pytest.raises(DataError, match="has 3 rows, and --held-out would take 5 of them"):
        run(dpo, config, tmp_path / "run")


def test_defaults_follow_the_model() -> None:
    assert runs.defaults(dpo.Config, [], by_model=dpo.FOR_REAL_MODELS) == dpo.Config()
    real = runs.defaults(dpo.Config, ["--model", "smollm2"], by_model=dpo.FOR_REAL_MODELS)
    assert (real.beta, real.warm_up, real.lora_rank, real.steps) == (0.1, 0, 16, None)
    for recipe in (reward_model, rlhf, shorter):
        assert runs.defaults(recipe.Config, ["--model=smollm2"], by_model=recipe.FOR_REAL_MODELS).lora_rank == 16


# ---- the made lists


def test_made_lists_are_what_they_claim() -> None:
    question = [user("Name four animals.")]
    for answer, quality in (
        ("cat, dog, cow, fox", 1.0),
        ("cat, dog, cow, red", 0.75),
        ("cat, cat, cat, cat", 0.25),
        ("cat, dog, cow, fox, hen, red, red, red", 5 / 8),
        ("", 0.0),
    ):
        assert tiny_lists.quality(question, assistant(answer)) == quality
    with pytest.raises(ValueError, match="asks for none of animals, colours"):
        tiny_lists.quality([user("Why?")], assistant("cat"))
    rows = list(tiny_lists.made_comparisons(200, seed=1))
    assert rows == list(tiny_lists.made_comparisons(200, seed=1))
    for row in rows:
        asked = [user(row["prompt"])]
        chosen, rejected = assistant(row["chosen"]), assistant(row["rejected"])
        assert tiny_lists.quality(asked, chosen) > tiny_lists.quality(asked, rejected)
