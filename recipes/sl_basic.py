"""Supervised learning in the fewest lines: conversations, batches, `train_supervised`.

    python -m recipes.sl_basic                                            # half a minute: a tiny model, chats made here
    python -m recipes.sl_basic --model smollm2 --data chats.jsonl

`recipes.chat_sl` adds evaluation, schedules, data sets by name and what a long run needs; `recipes.sl_loop` writes out what `train_supervised` does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import attrs

from recipes import cli, runs
from recipes.conversation_data import ConversationConfig, load_conversations
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult


@attrs.frozen(kw_only=True)
class Config(ConversationConfig):
    """Supervised learning of conversations, as small as it gets."""

    steps: int = attrs.field(default=120, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    batch_size: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Conversations a step."""
    learning_rate: float = attrs.field(default=3e-3, validator=attrs.validators.gt(0.0))
    """AdamW's learning rate, the same at every step."""
    held_out: int | None = 0
    """Nothing is evaluated here."""


FOR_REAL_MODELS = {"lora_rank": 16, "threads": None, "batch_size": 4, "learning_rate": 5e-4}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult:
    """Runs the recipe."""
    from actors import StopRequest, train_supervised
    from engine.backends.values import AdamParams
    from engine.data import SupervisedBatches
    from engine.runtime.offload import offload
    from engine.telemetry import display
    from recipes.summary import likelihood_learnt
    from recipes.tiny_chats import made_chats, make_chat_model

    directory, stop = runs.begin(config, "sl_basic"), StopRequest()
    conversations, _ = await offload(load_conversations, config, ports.load_rows, made_chats())
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_chat_model) as opened,
    ):
        batches = SupervisedBatches(
            examples=conversations,
            to_datums=config.to_datums(opened.renderer),
            batch_size=config.batch_size,
            epochs=config.steps,  # more than enough: the steps end it
            seed=config.seed,
            on_bad_row=config.on_bad_row,
        )
        with display.open(config.steps, "sl_basic") as live:
            result = await train_supervised(
                opened.backend,
                batches=batches,
                steps=config.steps,
                optimizer=AdamParams(config.learning_rate, grad_clip_norm=1.0),
                run=runs.settings(config, directory),
                observers=[live],
                stop=stop,
            )
    runs.tell(directory, result, "recipes.sl_basic", learnt=likelihood_learnt)
    return result


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
