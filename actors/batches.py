"""Supervised training's source and feed: batches built ahead of the trainer.

BatchSource   consumes: the dataset    produces: batches     waits for: room in the channel, what prepares a batch
BatchFeed     consumes: batches        produces: datums      waits for: a batch
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import anyio
import attrs
import numpy as np

from actors.reports import StepReport
from engine.backends.values import Datum, ForwardBackwardResult, Logprobs
from engine.runtime.channels import Receiver, Sender
from engine.runtime.offload import offload
from engine.training.assembly import pack_by_tokens
from engine.training.supervised import Batch, mean_nll

StepMetrics = Callable[[Sequence[Datum], Sequence[Logprobs]], Mapping[str, float]]
"""Metrics of a trained batch, from its datums and the policy's logprobs of their targets, one array (T,) each; called off the event loop."""


class BatchDataset(Protocol):
    """Batches by position: the same position gives the same batch, so that a resumed run goes on where the last one stood.

    Building a batch (tokenising, padding, drawing) happens off the event loop. A `Batch` may say what was counted on the way; it becomes the step's metrics.
    """

    def __getitem__(self, index: int, /) -> Sequence[Datum]: ...

    def __len__(self) -> int: ...


@attrs.frozen
class BatchCursor:
    """What a checkpoint keeps of a supervised run: how many batches have been trained."""

    position: int


@attrs.frozen
class Minibatches:
    """Into what parts a step's datums are split before they are submitted, one forward-backward pass each."""

    tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """At most so many input tokens a part, all parts about as large; None: one part."""
    together: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """Datums in a row that belong together: 2 for pairs."""

    def split(self, data: Sequence[Datum]) -> list[list[Datum]]:
        """The parts, in an order that follows from the data alone. Raises ValueError for what belongs together and is larger than a part may be."""
        if self.tokens is None:
            return [list(data)]
        units = [data[start : start + self.together] for start in range(0, len(data), self.together)]
        sizes = [sum(datum.model_input.length for datum in unit) for unit in units]
        if max(sizes) > self.tokens:
            what = "a datum has" if self.together == 1 else f"{self.together} datums that belong together have"
            raise ValueError(f"{what} {max(sizes)} tokens, more than the {self.tokens} of a minibatch")
        return [[datum for index in part for datum in units[index]] for part in pack_by_tokens(sizes, self.tokens)]


@attrs.frozen
class BuiltBatch:
    """A step's datums, ready to be submitted."""

    parts: list[list[Datum]]
    metrics: Mapping[str, float]


class BatchSource:
    """Builds the batches of steps `first` to `steps` − 1, as far ahead as the channel has room."""

    def __init__(
        self,
        batches: BatchDataset,
        first: int,
        steps: int,
        prepare: Callable[[Sequence[Datum]], Awaitable[Sequence[Datum]]] | None = None,
        minibatches: Minibatches | None = None,
    ) -> None:
        """`prepare` completes a batch, with what has to be asked for, on the event loop. `minibatches`: how it is split; None: not at all."""
        self._batches = batches
        self._first = first
        self._steps = steps
        self._prepare = prepare
        self._minibatches = minibatches or Minibatches()

    async def run(self, batches: Sender[BuiltBatch]) -> None:
        """Sends one batch a step."""
        for step in range(self._first, self._steps):
            index = step % len(self._batches)
            batch, metrics = await offload(self._build, index)
            if self._prepare is not None:
                batch = await self._prepared(index, batch, self._prepare)
            await batches.send(BuiltBatch(self._split(index, batch), metrics))

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

    def _split(self, index: int, batch: list[Datum]) -> list[list[Datum]]:
        try:
            return self._minibatches.split(batch)
        except ValueError as error:
            raise ValueError(f"batch {index} of {len(self._batches)}: {error}") from error

    def _build(self, index: int) -> tuple[list[Datum], Mapping[str, float]]:
        try:
            built = self._batches[index]
            batch, metrics = list(built), built.metrics if isinstance(built, Batch) else {}
        except Exception as error:
            raise ValueError(
                f"the dataset could not give batch {index} of {len(self._batches)}: {type(error).__name__}: {error}"
            ) from error
        if not batch:
            raise ValueError(f"batch {index} of {len(self._batches)} is empty: there is nothing to take a step on")
        return batch, metrics


class BatchFeed:
    """Hands batches to the trainer, one a step, in the parts into which they were split."""

    minibatches = sys.maxsize  # an empty one ends a step

    def __init__(self, batches: Receiver[BuiltBatch], position: int, metrics: StepMetrics | None = None) -> None:
        self._batches = batches
        self._metrics = metrics
        self._waited = 0.0
        self._parts: list[list[Datum]] = []
        self._under_way: deque[BuiltBatch] = deque()
        """Handed out and not settled, in order."""
        self.position = position
        """Batches trained so far."""

    async def next_minibatch(self, part: int) -> list[Datum]:
        """The next batch's part; empty when the step has no more, or nothing is left."""
        if part:
            return self._parts[part] if part < len(self._parts) else []
        began = anyio.current_time()
        try:
            batch = await self._batches.receive()
        except anyio.EndOfStream:
            return []
        finally:
            self._waited += anyio.current_time() - began
        self._parts = batch.parts
        self._under_way.append(batch)
        return batch.parts[0]

    def settle(self) -> SettledBatch:
        """A batch is trained."""
        self.position += 1
        return SettledBatch(self._under_way.popleft(), self._metrics)

    @property
    def waited(self) -> float:
        """Seconds spent waiting for batches, so far."""
        return self._waited


@attrs.frozen
class SettledBatch:
    """A trained batch."""

    batch: BuiltBatch
    metrics: StepMetrics | None = None

    async def report(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> StepReport:
        """The step's loss: `optim/loss` summed, `train/mean_nll` by weight; what was counted when the batch was built; the caller's own metrics."""
        return StepReport(await offload(self._row, data, results))

    def _row(self, data: Sequence[Datum], results: Sequence[ForwardBackwardResult]) -> dict[str, float]:
        logprobs = [logprobs_T for result in results for logprobs_T in result.logprobs]
        row = {
            "optim/loss": sum(result.loss for result in results),
            "optim/datums": float(len(data)),
            "optim/minibatches": float(len(self.batch.parts)),
            "tokens/trained": float(sum(datum.model_input.length for datum in data)),
            **self.batch.metrics,
        }
        weights = [datum.loss_inputs["weights"] for datum in data if "weights" in datum.loss_inputs]
        if len(weights) == len(data) and math.isfinite(nll := mean_nll(data, logprobs)):  # some of it has weight
            row["train/mean_nll"] = nll
            row["tokens/weighted"] = float(sum(np.count_nonzero(weights_T) for weights_T in weights))
        if self.metrics is not None:
            row.update(self.metrics(data, logprobs))
        return row
