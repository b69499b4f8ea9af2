"""Direct preference optimisation: a policy learns from comparisons, without a reward and without sampling.

    python -m recipes.preference.dpo                                               # a minute on two CPU cores: a tiny model, comparisons made here
    python -m recipes.preference.dpo --model smollm2 --data comparisons.jsonl      # rows of prompt, chosen, rejected
    python -m recipes.preference.dpo --model Qwen/Qwen3-0.6B --dataset hh          # by name from the Hugging Face hub

The loss compares the policy with its *reference*: the policy before any of this training, which lies in the run directory and is the same after a resume.
Its log-probabilities are computed ahead of the trainer, as the batches are. Without `--model`, a tiny model is made and taught to answer "Name four
animals." carelessly (`recipes.tiny_lists`); comparisons of such answers then teach it to listen. What this recipe leaves out: other preference losses (IPO, KTO),
and a length-normalised margin.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from recipes import cli, runs
from recipes.comparison_data import ComparisonConfig, as_conversations, load_comparisons
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import Evaluation, ReferencePolicy, RunResult, StopRequest
    from engine.backends.values import Datum
    from engine.data import Comparison, Examples, SupervisedBatches
    from recipes.models import OpenedModel

_at_least_one: Any = attrs.validators.ge(1)
_optional_at_least_one: Any = attrs.validators.optional(_at_least_one)
HELD_OUT = "held out"


@attrs.frozen(kw_only=True)
class Config(ComparisonConfig):
    """Direct preference optimisation. Without flags: a tiny model learns from comparisons that are made here, in a minute on two CPU cores."""

    steps: int | None = attrs.field(default=100, validator=_optional_at_least_one)
    """Optimizer steps; None: --epochs walks over the comparisons."""
    epochs: int = attrs.field(default=1, validator=_at_least_one)
    """Walks over the comparisons, each in its own order, where --steps does not say."""
    batch_size: int = attrs.field(default=64, validator=_at_least_one)
    """Pairs a step."""
    minibatch_tokens: int | None = attrs.field(default=None, validator=_optional_at_least_one)
    """Split a step into passes of at most so many tokens, pairs whole; None: one pass. The step stays the same."""
    beta: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    """How much a nat away from the reference counts: the smaller, the further the policy may go. 0.1 is common for long answers; the made ones are short."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=5))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over pairs; 0: no limit."""
    warm_up: int = attrs.field(default=150, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    evaluate_every: int = attrs.field(default=25, validator=_at_least_one)
    """Steps between evaluations on the held-out comparisons."""
    max_answer: int = attrs.field(default=16, validator=_at_least_one)
    """Longest answer, in tokens, where answers to the made questions are counted."""
    show: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    """Held-out prompts that are answered at the end."""
    prefetch: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    """Batches tokenised, and scored by the reference, before they are needed."""
    ahead: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    """Steps submitted before a step's result is awaited."""


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "steps": None,
    "batch_size": 16,
    "beta": 0.1,
    "learning_rate": LearningRateConfig(peak=2e-5, warmup_steps=10),
    "warm_up": 0,
    "evaluate_every": 20,
    "too_long": "skip",
    "on_bad_row": "skip",
}
"""A model that speaks already: LoRA, a learning rate far below that of supervised training, and public data, in which some rows compare nothing."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the preference training began."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from engine.runtime.seeds import derive_seed
    from recipes.preference.lists import careless_answers
    from recipes.summary import evaluations_learnt, sampled_answers
    from recipes.tiny_lists import make_list_model
    from recipes.warm_up import warm_up

    peak = config.learning_rate.peak_for(config)  # first: loading a model takes longer than saying that there is none
    directory = runs.begin(config, "dpo")
    stop = StopRequest()
    train, test = await offload(load_comparisons, config, ports.load_rows)
    result, answers = None, []
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_list_model) as opened,
    ):
        if config.model == TINY and config.warm_up:
            careless = careless_answers(opened, config.warm_up, derive_seed(config.seed, 0))
            await warm_up(opened, directory, careless, resume=config.resume, stop=stop)
        if not stop.requested:
            result = await _train(config, directory, opened, train, test, peak, stop)
            answers = await sampled_answers(opened, as_conversations(test), config.show) if test is not None else []
    runs.tell(directory, result, "recipes.preference.dpo", learnt=lambda path: [*evaluations_learnt(path), *answers])
    return result


async def _train(
    config: Config,
    directory: Path,
    opened: OpenedModel,
    train: Examples[Comparison],
    test: Examples[Comparison] | None,
    peak: float,
    stop: StopRequest,
) -> RunResult:
    from actors import Minibatches, pair_metrics, train_supervised, with_reference_logprobs
    from engine.backends.values import AdamParams, Loss
    from engine.data import held_out_pairs
    from engine.runtime.offload import offload
    from engine.telemetry import display

    batches = _batches(config, opened, train)
    steps = config.steps or len(batches)
    held_out: list[Datum] = []
    if test is not None:
        held_out, counts = await offload(held_out_pairs, test, config.to_pairs(opened.renderer), config.on_bad_row)
    with display.open(steps, "dpo") as live:
        if test is not None:
            left_out = counts["data/bad_rows"] + counts["data/too_long"]
            live.note(f"held out: {len(held_out) // 2} pairs" + (f", {left_out} left out" if left_out else ""))
        return await train_supervised(
            opened.backend,
            batches=batches,
            steps=steps,
            loss=Loss("dpo", {"beta": config.beta}),
            optimizer=AdamParams(peak, grad_clip_norm=config.grad_clip),
            learning_rate=config.learning_rate.over(steps),
            prepare=with_reference_logprobs,
            metrics=pair_metrics(config.beta),
            evaluations=lambda reference: _evaluations(config, opened, held_out, reference),
            minibatches=Minibatches(config.minibatch_tokens, together=2),
            prefetch=config.prefetch,
            ahead=config.ahead,
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _batches(config: Config, opened: OpenedModel, train: Examples[Comparison]) -> SupervisedBatches[Comparison]:
    from engine.data import pair_batches

    batches = pair_batches(
        train,
        config.to_pairs(opened.renderer),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
    )
    return batches if config.steps is None else batches.for_steps(config.steps)


def _evaluations(
    config: Config, opened: OpenedModel, held_out: list[Datum], reference: ReferencePolicy
) -> list[Evaluation]:
    from actors import pair_evaluation
    from engine.backends.values import SamplingParams
    from recipes.preference.lists import counted_evaluation

    every = config.evaluate_every
    evaluations = []
    if held_out:
        evaluations.append(pair_evaluation(HELD_OUT, held_out, reference, beta=config.beta, every=every))
    if config.made_here and config.model == TINY:
        sampling = SamplingParams(max_tokens=config.max_answer)
        evaluations.append(counted_evaluation(opened, reference, sampling, every=every, seed=config.seed))
    return evaluations


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
