"""Supervised learning of conversations.

    python -m recipes.chat_sl                                                    # a minute on one CPU core: a tiny model, chats made here
    python -m recipes.chat_sl --model smollm2 --data chats.jsonl                 # one's own conversations, one JSON object a line
    python -m recipes.chat_sl --model Qwen/Qwen3-0.6B --dataset no_robots        # by name from the Hugging Face hub

A row is `{"messages": [...]}`, or one of the other forms in docs/supervised.md. Batches are tokenised ahead of the trainer, evaluation on held-out
conversations runs beside it, and a stopped run goes on (`--resume --run-dir DIR`) with the batch it had come to. What this recipe leaves out: packing several
conversations into one sequence (sequences of a batch are computed side by side instead), images.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from recipes import cli, runs
from recipes.conversation_data import ConversationConfig, load_conversations
from recipes.learning_rates import LearningRateConfig
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult, StopRequest
    from engine.data import Conversation, Examples, HeldOut, SupervisedBatches
    from recipes.models import OpenedModel

_positive: Any = attrs.validators.optional(attrs.validators.ge(1))
HELD_OUT = "held out"


@attrs.frozen(kw_only=True)
class Config(ConversationConfig):
    """Supervised learning of conversations. Without flags: a tiny model learns chats that are made here, in a minute on one CPU core."""

    steps: int | None = attrs.field(default=None, validator=_positive)
    """Optimizer steps; None: --epochs walks over the conversations."""
    epochs: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    """Walks over the conversations, each in its own order, where --steps does not say."""
    batch_size: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Conversations a step."""
    minibatch_tokens: int | None = attrs.field(default=None, validator=_positive)
    """Split a step into passes of at most so many tokens, all about as large; None: one pass. The step stays the same."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=4e-3, warmup_steps=10))
    """The learning rate over the run."""
    weight_decay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """AdamW's, times the learning rate a step."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a mean over tokens; 0: no limit."""
    evaluate_every: int = attrs.field(default=40, validator=attrs.validators.ge(1))
    """Steps between evaluations on the held-out conversations."""
    inspect_tasks: tuple[str, ...] = ()
    """Tasks of inspect-ai to evaluate with too: module:function, file.py@function, or an installed one's name (pip install 'callsheet[inspect]')."""
    prefetch: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    """Batches tokenised before they are needed."""
    ahead: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    """Steps submitted before a step's result is awaited."""
    show: int = attrs.field(default=3, validator=attrs.validators.ge(0))
    """Held-out conversations whose last answer is sampled at the end."""
    best_metric: str | None = f"{HELD_OUT}/nll"
    """Metric of an evaluation, as <evaluation>/<metric>, by which the best checkpoint is kept too; None: none is."""
    best_is: runs.BestIs = "lowest"
    """Which value of --best-metric is best."""


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": LearningRateConfig(warmup_steps=5),
    "evaluate_every": 20,
}
"""A model that speaks already: LoRA, at the learning rate that is recommended for it."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult:
    """Runs the recipe."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from recipes.summary import likelihood_learnt, sampled_answers
    from recipes.tiny_chats import made_chats, make_chat_model

    peak = config.learning_rate.peak_for(config)  # first: loading a model takes longer than saying that there is none
    directory = runs.begin(config, "chat_sl")
    stop = StopRequest()
    train, test = await offload(load_conversations, config, ports.load_rows, made_chats())
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_chat_model) as opened,
    ):
        batches = _batches(config, train, opened)
        result = await _train(config, directory, opened, batches, await _held_out(config, test, opened), stop, peak)
        answers = await sampled_answers(opened, test, config.show) if test is not None else []
    runs.tell(
        directory, result, "recipes.chat_sl", learnt=lambda path: [*likelihood_learnt(path), *batches.reasons, *answers]
    )
    return result


def _batches(config: Config, train: Examples[Conversation], opened: OpenedModel) -> SupervisedBatches[Conversation]:
    from engine.data import SupervisedBatches

    batches = SupervisedBatches(
        examples=train,
        to_datums=config.to_datums(opened.renderer),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
    )
    return batches if config.steps is None else batches.for_steps(config.steps)


async def _held_out(config: Config, test: Examples[Conversation] | None, opened: OpenedModel) -> HeldOut | None:
    from engine.data import held_out_set
    from engine.runtime.offload import offload

    if test is None:
        return None
    return await offload(held_out_set, test, config.to_datums(opened.renderer), config.on_bad_row)


async def _train(
    config: Config,
    directory: Path,
    opened: OpenedModel,
    batches: SupervisedBatches[Conversation],
    held_out: HeldOut | None,
    stop: StopRequest,
    peak: float,
) -> RunResult:
    from actors import Minibatches, nll_evaluation, train_supervised
    from engine.backends.values import AdamParams
    from engine.telemetry import display
    from recipes.inspecting import inspect_evaluations

    steps = config.steps or len(batches)
    evaluations = await inspect_evaluations(config, directory, opened.renderer)
    if held_out is not None:
        evaluations.insert(
            0, nll_evaluation(HELD_OUT, held_out.data, text_bytes=held_out.text_bytes, every=config.evaluate_every)
        )
    with display.open(steps, "chat_sl") as live:
        if held_out is not None:
            live.note(f"held out: {held_out}")
        return await train_supervised(
            opened.backend,
            batches=batches,
            steps=steps,
            optimizer=AdamParams(peak, weight_decay=config.weight_decay, grad_clip_norm=config.grad_clip),
            learning_rate=config.learning_rate.over(steps),
            evaluations=evaluations,
            minibatches=Minibatches(config.minibatch_tokens),
            prefetch=config.prefetch,
            ahead=config.ahead,
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
