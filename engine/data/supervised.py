"""Conversations as supervised batches: by position, so that a resumed run goes on where the last one stood, and nothing left out unseen.

    Examples[Conversation] ──renderer──> sequences and weights ──limit on length──> datums ──> Batch(datums, counts)

Counts of a batch: `data/rows` that it was made of, `data/bad_rows` that did not fit, `data/too_long` examples left out, `data/truncated` examples cut short.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Generic, Literal, Protocol, TypeVar

import attrs
import numpy as np

from engine.backends.values import Datum
from engine.data.conversations import Conversation
from engine.data.errors import BadRow, DataError
from engine.data.examples import SHOWN, Examples, OnBadRow
from engine.rendering import Renderer, TrainOnWhat, Vocabulary
from engine.training.supervised import Batch, supervised_datum

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
TooLong = Literal["error", "truncate", "skip"]
COUNTS = ("data/rows", "data/bad_rows", "data/too_long", "data/truncated")


class Converter(Protocol[T_contra]):
    """How an example becomes datums."""

    def __call__(self, example: T_contra, counts: Counter[str], /) -> list[Datum]:
        """The datums, none for an example that is left out; counts what was left out or cut. Raises ValueError for one that cannot be trained on."""
        ...


@attrs.frozen(kw_only=True)
class ToDatums:
    """How a conversation becomes datums: several where the model's family rewrites history between turns."""

    renderer: Renderer
    train_on: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
    """The most tokens an example may have; None: no limit."""
    too_long: TooLong = "truncate"
    """What to do with a longer one: an error, its first `max_tokens`, or leave it out. What has nothing to learn from when it is cut is left out."""

    def __call__(self, conversation: Conversation, counts: Counter[str]) -> list[Datum]:
        """Datums with weights 0 and 1; counts what was cut or left out. Raises ValueError for a conversation that cannot be trained on."""
        examples = self.renderer.supervised_examples(conversation.messages, self.train_on, tools=conversation.tools)
        datums = []
        for example in examples:
            long = self.max_tokens is not None and example.model_input.length > self.max_tokens
            if long and self.too_long == "error":
                raise DataError(
                    f"{example.model_input.length} tokens, more than the limit of {self.max_tokens}: raise it, or have such examples truncated or skipped"
                )
            datum = supervised_datum(
                example.model_input, example.weights_T, max_tokens=self.max_tokens, too_long=self.too_long
            )
            if datum is not None:
                datums.append(datum)
            counts["data/truncated" if datum is not None else "data/too_long"] += long
        return datums


@attrs.frozen(kw_only=True)
class SupervisedBatches(Generic[T]):
    """A dataset of batches, `epochs` walks over the examples, each in its own order. Building one tokenises: not on an event loop."""

    examples: Examples[T]
    to_datums: Converter[T]
    """`ToDatums` for conversations, `ToPairs` for comparisons, or one's own."""
    batch_size: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Examples a step. The last step of an epoch has what is left."""
    epochs: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    shuffle: bool = True
    seed: int = 0
    on_bad_row: OnBadRow = "error"
    """A row that does not fit: an error, or left out of its batch and counted."""
    mean: bool = True
    """Weights of a step add up to 1, so that its loss and gradient are means over tokens; otherwise they are sums."""
    reasons: list[str] = attrs.field(factory=list, init=False, eq=False)
    """Why rows were left out, for the first few of this process."""
    _order: dict[int, Examples[T]] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    @property
    def batches_per_epoch(self) -> int:
        """Steps in one walk over the examples."""
        return math.ceil(len(self.examples) / self.batch_size)

    def for_steps(self, steps: int) -> SupervisedBatches[T]:
        """The same with at least so many batches: as many epochs as that takes."""
        return attrs.evolve(self, epochs=math.ceil(steps / self.batches_per_epoch))

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __getitem__(self, index: int) -> Batch:
        """The batch of a step. Raises BadRow or DataError, naming file, row and field; DataError where nothing is left of the batch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        epoch, place = divmod(index, self.batches_per_epoch)
        ordered = self._ordered(epoch)
        first = place * self.batch_size
        chosen = range(first, min(first + self.batch_size, len(ordered)))
        datums, counts, reasons = datums_of(ordered, chosen, self.to_datums, self.on_bad_row)
        self.reasons.extend(reasons[: max(0, SHOWN - len(self.reasons))])
        if not datums:
            why = "; ".join(reasons[:SHOWN]) or "every example is too long"
            raise DataError(f"step {index}: none of its {len(chosen)} rows can be trained on: {why}")
        return Batch(tuple(_scaled(datums) if self.mean else datums), {name: float(counts[name]) for name in COUNTS})

    def _ordered(self, epoch: int) -> Examples[T]:
        if not self.shuffle:
            return self.examples
        if epoch not in self._order:
            self._order.clear()
            self._order[epoch] = self.examples.shuffled(self.seed, epoch)
        return self._order[epoch]


def datums_of(
    examples: Examples[T], chosen: range, to_datums: Converter[T], on_bad_row: OnBadRow
) -> tuple[list[Datum], Counter[str], list[str]]:
    """Datums of the chosen rows, what was counted, and why rows were left out. Raises BadRow or DataError naming the row."""
    counts: Counter[str] = Counter({"data/rows": len(chosen)})
    reasons: list[str] = []
    datums: list[Datum] = []
    for index in chosen:
        where = examples.where(index)
        try:
            datums += to_datums(examples[index], counts)
        except ValueError as error:
            if isinstance(error, DataError) and not isinstance(error, BadRow):
                raise DataError(f"{where}: {error}") from error
            bad = error if isinstance(error, BadRow) else BadRow(where, str(error))
            if on_bad_row == "error":
                raise bad from error
            counts["data/bad_rows"] += 1
            reasons.append(str(bad))
    return datums, counts, reasons


def _scaled(datums: list[Datum]) -> list[Datum]:
    total = sum(float(datum.loss_inputs["weights"].sum(dtype=np.float64)) for datum in datums)
    return [
        attrs.evolve(
            datum,
            loss_inputs={**datum.loss_inputs, "weights": (datum.loss_inputs["weights"] / total).astype(np.float32)},
        )
        for datum in datums
    ]


@attrs.frozen
class HeldOut:
    """Examples to score, all of them at once."""

    data: tuple[Datum, ...]
    text_bytes: int
    """UTF-8 bytes of the text that the weighted tokens spell; control tokens spell none."""
    counts: Counter[str]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        left_out = self.counts["data/bad_rows"] + self.counts["data/too_long"]
        cut = self.counts["data/truncated"]
        said = f"{len(self.data)} examples" + (f", {left_out} left out" if left_out else "")
        return said + (f", {cut} cut short" if cut else "")


def held_out_set(examples: Examples[Conversation], to_datums: ToDatums, on_bad_row: OnBadRow = "error") -> HeldOut:
    """All examples as datums with weights 0 and 1. Tokenises: not on an event loop. Raises as `SupervisedBatches` does, DataError where nothing is left."""
    datums, counts, reasons = datums_of(examples, range(len(examples)), to_datums, on_bad_row)
    if not datums:
        raise DataError(f"{examples.name}: none of its {len(examples)} held-out rows can be scored")
    return HeldOut(tuple(datums), text_bytes(datums, to_datums.renderer.vocabulary), counts, tuple(reasons[:SHOWN]))


def text_bytes(datums: list[Datum], vocabulary: Vocabulary) -> int:
    """UTF-8 bytes of the text that the weighted targets spell."""
    control = set(vocabulary.special_tokens.values())
    sizes: dict[int, int] = {}
    total = 0
    for datum in datums:
        for token in datum.loss_inputs["target_tokens"][datum.loss_inputs["weights"] > 0].tolist():
            if token not in sizes:
                sizes[token] = 0 if token in control else len(vocabulary.token_bytes(token))
            total += sizes[token]
    return total
