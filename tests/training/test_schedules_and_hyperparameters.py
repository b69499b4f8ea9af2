"""Learning-rate schedules and recommendations, and parameter counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.training.hyperparameters import (
    ModelShape,
    learning_rate_for,
    lora_parameters,
    model_parameters,
    recommended_learning_rate,
)
from engine.training.schedules import LearningRateSchedule

TINY = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def rates(schedule: LearningRateSchedule, total: int) -> list[float]:
    return [schedule.multiplier(step, total) for step in range(total)]


def test_shapes() -> None:
    assert rates(LearningRateSchedule(), 3) == [1, 1, 1]
    assert LearningRateSchedule("linear").over(4)(1) == 0.75
    assert rates(LearningRateSchedule("linear"), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(LearningRateSchedule("cosine"), 4) == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert rates(LearningRateSchedule("linear", warmup_steps=3), 7) == pytest.approx(
        [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    )
    assert rates(LearningRateSchedule("linear", floor=0.5), 2) == pytest.approx([1, 0.75])
    assert rates(LearningRateSchedule("constant", warmup_steps=1), 3) == [0.5, 1, 1]
    assert rates(LearningRateSchedule("cosine", warmup_steps=5), 3) == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6]
    )  # still warming up


@settings(deadline=None)
@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 20), st.floats(0, 1), st.integers(1, 60))
def test_rises_then_falls_and_stays_in_range(shape: str, warmup: int, floor: float, total: int) -> None:
    found = rates(LearningRateSchedule(shape, warmup, floor), total)  # type: ignore[arg-type]
    rising, falling = found[:warmup], found[warmup:]
    assert all(0 < rate <= 1 for rate in found)
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(rate >= floor - 1e-12 for rate in falling)
    assert not falling or falling[0] == 1


def test_schedules_refuse_nonsense() -> None:
    with pytest.raises(
        ValueError, match="no learning-rate schedule is called 'step'; there are constant, linear, cosine"
    ):
        LearningRateSchedule("step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step 5 is not one of the run's 5"):
        LearningRateSchedule().multiplier(5, 5)
    with pytest.raises(ValueError, match="warmup_steps"):
        LearningRateSchedule(warmup_steps=-1)
    with pytest.raises(ValueError, match="floor"):
        LearningRateSchedule(floor=1.5)


def test_recommendations() -> None:
    assert recommended_learning_rate(2000, "llama") == pytest.approx(5e-4)
    assert recommended_learning_rate(2000, "qwen", lora=False) == pytest.approx(5e-5)
    assert learning_rate_for("meta-llama/Llama-3.1-8B-Instruct") == pytest.approx(5e-4 * (2000 / 4096) ** 0.781)
    assert learning_rate_for("Qwen/Qwen3-8B") == pytest.approx(5e-4 * (2000 / 4096) ** 0.0775)
    assert learning_rate_for("HuggingFaceTB/SmolLM2-135M-Instruct") == pytest.approx(5e-4 * (2000 / 576) ** 0.781)
    assert learning_rate_for({"model_type": "qwen3", "hidden_size": 5120}) == learning_rate_for("Qwen/Qwen3-32B")
    assert learning_rate_for("Qwen/Qwen3-30B-A3B-Instruct-2507") == recommended_learning_rate(2048, "qwen")
    with pytest.raises(ValueError, match="no learning rate is known for 'acme/Qwen3-80B'"):
        learning_rate_for("acme/Qwen3-80B")
    with pytest.raises(
        ValueError, match="no learning-rate exponent is known for the family 'gemma3'; there are llama, qwen"
    ):
        learning_rate_for({"model_type": "gemma3", "hidden_size": 2048})
    with pytest.raises(ValueError, match="at least 1, not 0"):
        recommended_learning_rate(0, "llama")


def test_lora_counts() -> None:
    shape = ModelShape.from_config({**TINY, "model_type": "llama"})
    attention = (32 + 32) + 2 * (32 + 16) + (32 + 32)
    mlp = 3 * (32 + 80)
    assert lora_parameters(shape, 4, mlp=False) == 4 * 3 * attention
    assert lora_parameters(shape, 4, attention=False) == 4 * 3 * mlp
    assert lora_parameters(shape, 4, unembed=True) == 4 * (3 * (attention + mlp) + 132)
    # Llama-3.1-8B at rank 32 has 83.9 million adapter parameters on its linear layers, and 8.03 billion in all.
    large = ModelShape(4096, 14336, 32, 32, 8, 128, 128256)
    assert lora_parameters(large, 32) == 83_886_080
    assert model_parameters(large) == 8_030_261_248


def test_shapes_that_are_not_known_are_named() -> None:
    with pytest.raises(ValueError, match="has no 'intermediate_size'"):
        ModelShape.from_config({key: value for key, value in TINY.items() if key != "intermediate_size"})
    with pytest.raises(ValueError, match="mixture of experts"):
        ModelShape.from_config({**TINY, "num_experts": 8})


@pytest.mark.local
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers by an old name
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kind, options)
        for kind in ("llama", "qwen2", "qwen3")
        for options in ({}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"head_dim": 12})
        if kind != "qwen2" or not options.keys() & {"attention_bias", "head_dim"}  # which it does not have
    ],
)
def test_counts_equal_those_of_real_modules(kind: str, options: dict[str, object]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.AutoConfig.for_model(
        kind, **TINY, **{"head_dim": 8, **options} if kind == "qwen3" else options
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(config.to_dict())
    assert model_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert lora_parameters(shape, 4) == trained
