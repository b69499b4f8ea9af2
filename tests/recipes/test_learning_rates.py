"""Learning rates by flags."""

from __future__ import annotations

import attrs
import pytest

from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import ModelConfig


@attrs.frozen(kw_only=True)
class Config(runs.RunConfig):
    """An example."""

    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))


def parsed(words: str) -> Config:
    return cli.parse(Config, words.split(), "example")


def test_flags_reach_the_schedule() -> None:
    rate = parsed(
        "--learning-rate.peak 5e-4 --learning-rate.shape cosine --learning-rate.warmup-steps 1 --learning-rate.floor 0.5"
    ).learning_rate
    assert rate.peak == 5e-4
    assert [round(rate.over(5)(step), 6) for step in range(5)] == [
        0.5,
        1.0,
        0.926777,
        0.75,
        0.573223,
    ]


def test_shapes() -> None:
    assert [LearningRateConfig(shape="linear", warmup_steps=1).over(4)(step) for step in range(4)] == pytest.approx(
        [1 / 2, 1, 2 / 3, 1 / 3]
    )
    assert [LearningRateConfig(shape="constant").over(3)(step) for step in range(3)] == [1, 1, 1]
    assert (
        LearningRateConfig(warmup_steps=100).over(3)(2) == 1.0
    )  # a warm-up longer than the run: the last step has the peak
    assert LearningRateConfig(warmup_steps=100).over(1)(0) == 1.0


def test_the_peak_follows_the_model() -> None:
    rate = LearningRateConfig()
    full, lora = ModelConfig(model="Qwen/Qwen3-8B"), ModelConfig(model="Qwen/Qwen3-8B", lora_rank=16)
    assert rate.peak_for(lora) == pytest.approx(10 * rate.peak_for(full))
    assert LearningRateConfig(peak=1e-3).peak_for(full) == 1e-3
    with pytest.raises(ValueError, match=r"--learning-rate\.peak must be given: no learning rate is known for 'tiny'"):
        rate.peak_for(ModelConfig())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--learning-rate 1e-3", "--learning-rate: there is no such flag; did you mean --learning-rate.peak?"),
        ("--learning-rate.peak 0", "--learning-rate.peak: must be above 0.0, not 0.0"),
        ("--learning-rate.floor 2", "--learning-rate.floor: must be at most 1.0, not 2.0"),
        (
            "--learning-rate.shape square",
            "--learning-rate.shape: must be one of constant, linear, cosine, not 'square'",
        ),
    ],
)
def test_wrong_flags(words: str, message: str) -> None:
    with pytest.raises(ValueError) as wrong:
        parsed(words)
    assert str(wrong.value).startswith(message), str(wrong.value)
