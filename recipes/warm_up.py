"""The supervised phase of a tiny model before its reinforcement learning: it learns to speak, and what it says wrong is left to the reward.

async with open_worked(config, directory, ports, stop, conversation) as opened: ...       # conversation(number) -> messages
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from engine.backends.values import Datum
from engine.rendering import Message, Renderer, ToolSpec, get_renderer
from engine.rendering.registry import control_tokens
from engine.training.supervised import supervised_datum
from recipes import tiny
from recipes.models import RENDERERS, TINY, MakeTiny, OpenedModel
from recipes.ports import Ports
from recipes.reinforcement import RLConfig

if TYPE_CHECKING:
    from actors import BatchDataset, StopRequest

Worked = Callable[[int], Sequence[Message]]
"""Conversation number `n` of an endless stream, a pure function of it: what a tiny model is warmed up on."""

BATCH = 64
"""Conversations in a step."""


@attrs.frozen
class WorkedConversations:
    """Batches of conversations made on the spot. The same position gives the same batch."""

    renderer: Renderer
    conversation: Worked
    steps: int
    batch_size: int = BATCH
    tools: Sequence[ToolSpec] = ()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Sequence[Datum]:
        first = index * self.batch_size
        return [
            datum
            for number in range(first, first + self.batch_size)
            for example in self.renderer.supervised_examples(self.conversation(number), tools=self.tools)
            if (datum := supervised_datum(example.model_input, example.weights_T)) is not None
        ]


@asynccontextmanager
async def open_warmed_up(
    config: RLConfig,
    directory: Path,
    ports: Ports,
    stop: StopRequest,
    batches: Callable[[Renderer], BatchDataset],
    *,
    make_tiny: MakeTiny | None = None,
) -> AsyncIterator[OpenedModel]:
    """The model that reinforcement learning starts from. The tiny one is made, and warmed up on the batches; any other is taken as it is."""
    async with ports.open_model(config, directory, seed=config.seed, make_tiny=make_tiny) as opened:
        if config.model == TINY and config.warm_up:
            await warm_up(opened, directory, batches(opened.renderer), resume=config.resume, stop=stop)
        yield opened


@asynccontextmanager
async def open_worked(
    config: RLConfig, directory: Path, ports: Ports, stop: StopRequest, worked: Worked, **sizes: Any
) -> AsyncIterator[OpenedModel]:
    """As `open_warmed_up`, on conversations for which the tiny model's tokenizer is made, too. `sizes`: as `recipes.tiny.make_model` takes them."""
    make_tiny = None
    if config.model == TINY:
        shown = [worked(-1 - number) for number in range(200)]
        make_tiny = tiny_model_for(config.renderer or RENDERERS[TINY], shown, **sizes)

    def batches(renderer: Renderer) -> WorkedConversations:
        return WorkedConversations(renderer, worked, config.warm_up, batch_size=128)

    async with open_warmed_up(config, directory, ports, stop, batches, make_tiny=make_tiny) as opened:
        yield opened


async def warm_up(
    opened: OpenedModel,
    directory: Path,
    batches: BatchDataset,
    *,
    resume: bool = False,
    stop: StopRequest | None = None,
) -> None:
    """One walk over the batches, as a run of its own in `directory`/warm_up: a resumed run goes on with it, or restores what it learnt."""
    from actors import RunSettings, train_supervised
    from engine.backends.values import AdamParams
    from engine.telemetry import display

    steps = len(batches)
    with display.open(steps, "warm-up") as live:
        await train_supervised(
            opened.backend,
            batches=batches,
            optimizer=AdamParams(4e-3, beta2=0.98, grad_clip_norm=3.0),
            # Up within 20 steps, and down over the last two fifths.
            learning_rate=lambda step: min(1.0, (step + 1) / 20, max(0.1, (steps - step) / (0.4 * steps))),
            run=RunSettings(directory / "warm_up", resume=resume, checkpoint_every=None),
            observers=[live],
            stop=stop,
        )


def tiny_model_for(
    renderer: str, conversations: Sequence[Sequence[Message]], *, tools: Sequence[ToolSpec] = (), **sizes: Any
) -> MakeTiny:
    """A tiny model whose tokenizer has what these conversations say, in this format, in as few tokens as can be; declarations of tools take a handful.

    `sizes`: as `recipes.tiny.make_model` takes them.
    """
    controls = control_tokens(renderer)
    letters = get_renderer(renderer, tiny.make_tokenizer(("a",), controls=controls))
    special = set(letters.vocabulary.special_tokens.values())
    texts: list[str] = []
    for conversation in conversations:
        for example in letters.supervised_examples(conversation, tools=tools):
            run: list[int] = []
            for token in [*example.model_input.tokens.tolist(), None]:
                if token is not None and token not in special:
                    run.append(token)
                    continue
                if run:
                    texts.append(letters.vocabulary.decode(run))
                run = []
    return partial(tiny.make_model, texts=texts, controls=controls, **sizes)
