"""Supervised training's source and feed: batches built ahead of the trainer.

BatchSource   consumes: the dataset    produces: batches     waits for: room in the channel, what prepares a batch
BatchFeed     consumes: batches        produces: datums      waits for: a batch
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio
import attrs
import numpy as np

from actors.reports import StepReport
from engine.backends.values import Datum, ForwardBackwardResult
from engine.runtime.channels import Receiver, Sender
from engine.runtime.offload import offload


class BatchDataset(Protocol):
    """Batches by position: the same position gives the same batch, so that a resumed run goes on where the last one stood.

    Building a batch (tokenising, padding, drawing) happens off the event loop.
    """

    def __getitem__(self, index: int, /) -> Sequence[Datum]: ...

    def __len__(self) -> int: ...


@attrs.frozen
class BatchCursor:
    """What a checkpoint keeps of a supervised run: how many batches have been trained."""

    position: int


class BatchSource:
    """Builds the batches of steps `first` to `steps` − 1, as far ahead as the channel has room."""

    def __init__(
        self,
        batches: BatchDataset,
        first: int,
        steps: int,
        prepare: Callable[[Sequence[Datum]], Awaitable[Sequence[Datum]]] | None = None,
    ) -> None:
        """`prepare` completes a batch, with what has to be asked for, on the event loop."""
        self._batches = batches
        self._first = first
        self._steps = steps
        self._prepare = prepare

    async def run(self, batches: Sender[list[Datum]]) -> None:
        """Sends one batch a step."""
        for step in range(self._first, self._steps):
            index = step % len(self._batches)
            batch = await offload(self._build, index)
            if self._prepare is not None:
                batch = await self._prepared(index, batch, self._prepare)
            await batches.send(batch)

    async def _prepared(
        self, index: int, batch: list[Datum], prepare: Callable[[Sequence[Datum]], Awaitable[Sequence[Datum]]]
    ) -> list[Datum]:
        try:
            prepared = list(await prepare(batch))
        except Exception as error:
            error.add_note(f"while batch {index} of {len(self._batches)} was prepared")
            raise
        if not prepared:
            raise ValueError(
                f"nothing was left of batch {index} of {len(self._batches)} when it was prepared: there is nothing to take a step on"
            )
        return prepared

    def _build(self, index: int) -> list[Datum]:
        try:
            batch = list(self._batches[index])
        except Exception as error:
            raise ValueError(
                f"the dataset could not give batch {index} of {len(self._batches)}: {type(error).__name__}: {error}"
            ) from error
        if not batch:
            raise ValueError(f"batch {index} of {len(self._batches)} is empty: there is nothing to take a step on")
        return batch


class BatchFeed:
    """Hands batches to the trainer, one a step."""

    minibatches = 1

    def __init__(self, batches: Receiver[list[Datum]], position: int) -> None:
        self._batches = batches
        self._waited = 0.0
        self.position = position
        """Batches trained so far."""

    async def next_minibatch(self, part: int) -> list[Datum]:  # noqa: ARG002  (a supervised step is one part)
        """The next batch; empty when there are no more."""
        began = anyio.current_time()
        try:
            return await self._batches.receive()
        except anyio.EndOfStream:
            return []
        finally:
            self._waited += anyio.current_time() - began

    def settle(self) -> SettledBatch:
        """A batch is trained."""
        self.position += 1
        return SettledBatch()

    @property
    def waited(self) -> float:
        """Seconds spent waiting for batches, so far."""
        return self._waited


class SettledBatch:
    """A trained batch."""

    async def report(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> StepReport:
        """The step's loss: `optim/loss` summed, `train/mean_nll` by weight."""
        loss = sum(result.loss for result in results)
        weight = sum(float(np.sum(datum.loss_inputs["weights"])) for datum in data if "weights" in datum.loss_inputs)
        row = {
            "optim/loss": loss,
            "optim/datums": float(len(data)),
            "tokens/trained": float(sum(datum.model_input.length for datum in data)),
        }
        if weight > 0:
            row["train/mean_nll"] = loss / weight
        return StepReport(row)
