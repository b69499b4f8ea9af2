"""A preference model: a language model that reads a prompt and two answers, and says which is better.

    python -m recipes.preference.reward_model                                              # a minute on two CPU cores: a tiny model, comparisons made here
    python -m recipes.preference.reward_model --model smollm2 --data comparisons.jsonl     # rows of prompt, chosen, rejected
    python -m recipes.preference.reward_model --model Qwen/Qwen3-0.6B --dataset helpsteer3

It is trained on comparisons in both orders, to say A or B, and used by the probabilities of the two, averaged over both orders. `recipes.preference.rlhf
--preference-run DIR` trains a policy against it. What this recipe leaves out: a scalar head (Bradley-Terry), and how much better an answer is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import attrs

from recipes import cli, runs
from recipes.comparison_data import ComparisonConfig, load_comparisons
from recipes.learning_rates import LearningRateConfig
from recipes.ports import DEFAULT, Ports
from recipes.preference.stages import PreferenceStage, SftStage, Stages

if TYPE_CHECKING:
    from actors import RunResult


@attrs.frozen(kw_only=True)
class Config(ComparisonConfig):
    """A preference model. Without flags: a tiny model learns which of two lists of words is better, in a minute on two CPU cores."""

    training: PreferenceStage = attrs.field(factory=PreferenceStage)
    """Training of the preference model."""
    sft: SftStage = attrs.field(factory=SftStage)
    """Supervised training before it."""


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "training": PreferenceStage(
        steps=200, batch_size=8, learning_rate=LearningRateConfig(warmup_steps=10), wording="full", evaluate_every=50
    ),
    "sft": SftStage(steps=0),
    "too_long": "skip",
    "on_bad_row": "skip",
}
"""A model that reads already: LoRA, at the learning rate that is recommended for it."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the preference model's training began."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from recipes.summary import evaluations_learnt
    from recipes.tiny_lists import make_list_model

    config.training.learning_rate.peak_for(config)  # first: loading a model takes longer than saying that there is none
    directory = runs.begin(config, "reward_model")
    stop = StopRequest()
    train, test = await offload(load_comparisons, config, ports.load_rows)
    stages = Stages(config=config, train=train, test=test, stop=stop)
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_list_model) as opened,
    ):
        await stages.sft(config.sft, opened, directory / "sft")
        result = await stages.preference_model(config.training, opened, runs.settings(config, directory))
    runs.tell(directory, result, "recipes.preference.reward_model", learnt=evaluations_learnt)
    return result


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
