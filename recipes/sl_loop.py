"""Supervised learning with the loop written out, against the backend's ports alone: to read, and to make one's own from.

    python -m recipes.sl_loop                                             # half a minute: a tiny model, chats made here
    python -m recipes.sl_loop --model smollm2 --data chats.jsonl --save weights

A backend is a queue. What is submitted is worked on in order, and waiting is separate, so a step's work is submitted before the one before it is waited for:
the backend is never idle while a batch is tokenised or a line printed. What is left out here and done by `train_supervised`: batches built by an actor of
their own, checkpoints that are consistent cuts, resume, evaluation beside training, a run directory.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from recipes import cli, runs
from recipes.models import ModelConfig
from recipes.ports import DEFAULT, Ports
from recipes.terminal import say

if TYPE_CHECKING:
    from engine.backends.ports import Backend, Pending
    from engine.backends.values import Datum, ForwardBackwardResult
    from engine.data import Conversation, SupervisedBatches

_at_least_one: Any = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class Config(ModelConfig):
    """The loop of supervised learning."""

    data: Path | None = None
    """Local conversations: a .jsonl, .json, .parquet or .csv file, or a directory of them; None: chats made here."""
    steps: int = attrs.field(default=120, validator=_at_least_one)
    """Optimizer steps."""
    batch_size: int = attrs.field(default=32, validator=_at_least_one)
    """Conversations a step."""
    learning_rate: float = attrs.field(default=3e-3, validator=attrs.validators.gt(0.0))
    """AdamW's learning rate at the first step; it falls to 0 along a line."""
    max_tokens: int = attrs.field(default=2048, validator=attrs.validators.ge(2))
    """The most tokens of an example; longer ones are cut short."""
    seed: int = 0
    """Seed of everything drawn at random."""
    save: Path | None = None
    """A new directory for the trained weights; None: they are not kept."""


@attrs.frozen
class Submitted:
    """A step whose work the backend has."""

    step: int
    weight: float
    passed: Pending[ForwardBackwardResult]
    stepped: Pending[dict[str, float]]


async def run(config: Config, ports: Ports = DEFAULT) -> list[float]:
    """Trains; gives each step's loss in nats per token, and last that of the held-out conversations."""
    from engine.data import SupervisedBatches, ToDatums, held_out_set, read_conversations
    from engine.runtime.offload import offload
    from recipes.tiny_chats import made_chats, make_chat_model

    rows = await offload(ports.load_rows, config.data) if config.data is not None else made_chats()
    held_out_rows = min(64, len(rows) // 10)
    train, test = read_conversations(rows).split(held_out_rows, config.seed)
    with tempfile.TemporaryDirectory() as made:
        async with ports.open_model(config, Path(made), seed=config.seed, make_tiny=make_chat_model) as opened:
            to_datums = ToDatums(renderer=opened.renderer, max_tokens=config.max_tokens)
            batches = SupervisedBatches(
                examples=train,
                to_datums=to_datums,
                batch_size=config.batch_size,
                epochs=config.steps,  # more than enough: the steps end it
                seed=config.seed,
            )
            losses = await train_on(opened.backend, batches, config)
            held_out = await offload(held_out_set, test, to_datums)
            losses.append(await nll(opened.backend, held_out.data))
            say(f"held out: {losses[-1]:.4f} nats per token on {held_out}")
            if config.save is not None:
                config.save.mkdir(parents=True)
                await opened.backend.save_state(config.save).result()
                say(f"weights: {config.save}")
    return losses


async def train_on(backend: Backend, batches: SupervisedBatches[Conversation], config: Config) -> list[float]:
    """The loop: submit a step, then wait for the one before."""
    from engine.backends.values import AdamParams, Loss
    from engine.runtime.offload import offload

    losses: list[float] = []
    before: Submitted | None = None
    for step in range(config.steps):
        batch = list(await offload(batches.__getitem__, step))  # tokenising would block the event loop
        weight = sum(float(datum.loss_inputs["weights"].sum()) for datum in batch)
        rate = config.learning_rate * (1 - step / config.steps)
        submitted = Submitted(
            step,
            weight,
            backend.forward_backward(batch, Loss("cross_entropy")),
            backend.optim_step(AdamParams(rate, grad_clip_norm=1.0)),
        )
        if before is not None:
            losses.append(await finish(before))
        before = submitted
    if before is not None:
        losses.append(await finish(before))
    return losses


async def finish(submitted: Submitted) -> float:
    """Waits for a step and prints it."""
    loss = (await submitted.passed.result()).loss / submitted.weight
    metrics = await submitted.stepped.result()
    say(f"step {submitted.step + 1:4}  nll {loss:.4f}  grad norm {metrics['grad_norm']:.3f}")
    return loss


async def nll(backend: Backend, data: Sequence[Datum]) -> float:
    """Nats per token of held-out datums under the weights of now."""
    from engine.training.kl import full_sequence
    from engine.training.supervised import mean_nll

    snapshot = await backend.snapshot().result()
    try:
        scored = [(await backend.compute_logprobs(snapshot, full_sequence(datum)))[1:] for datum in data]
    finally:
        backend.release(snapshot)
    return mean_nll(data, scored)


FOR_REAL_MODELS: dict[str, Any] = {"lora_rank": 16, "threads": None, "batch_size": 4, "learning_rate": 5e-4}


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
