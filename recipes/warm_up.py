"""The supervised phase of a tiny model before its reinforcement learning: it learns to speak, and what it says wrong is left to the reward.

batches = WorkedConversations(opened.renderer, conversation, steps=200)       # conversation(number) -> messages
await warm_up(opened, directory, batches, resume=config.resume, stop=stop)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from engine.backends.values import Datum
from engine.rendering import Message, Renderer, ToolSpec, get_renderer
from engine.rendering.registry import control_tokens
from engine.training.supervised import supervised_datum
from recipes import tiny
from recipes.models import MakeTiny, OpenedModel

if TYPE_CHECKING:
    from actors import BatchDataset, StopRequest


BATCH = 64
"""Conversations in a step."""


@attrs.frozen
class WorkedConversations:
    """Batches of conversations made on the spot. The same position gives the same batch."""

    renderer: Renderer
    conversation: Callable[[int], Sequence[Message]]
    """Number `n` of an endless stream, a pure function of it."""
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
