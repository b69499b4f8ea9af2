"""Comparisons as pairs of datums, and batches of whole pairs: what DPO trains on.

    Comparison ──renderer──> prompt + chosen, prompt + rejected ──> (chosen datum, rejected datum) ──> batch: chosen, rejected, chosen, rejected, ...

Nothing is padded: a datum is as long as its tokens. The answers' tokens alone have weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum
from engine.data.comparisons import Comparison
from engine.data.errors import BadRow
from engine.rendering import Message, Renderer, TrainOnWhat
from engine.training.supervised import Batch, supervised_datum

TooLong = Literal["error", "skip"]
_positive: Any = attrs.validators.ge(1)


class PairTooLong(ValueError):
    """An answer has more tokens, its prompt included, than it may have."""


class Comparisons(Protocol):
    """Comparisons by position: what `read_comparisons` gives, or a list."""

    def __getitem__(self, index: int, /) -> Comparison: ...

    def __len__(self) -> int: ...


def pair_datums(renderer: Renderer, comparison: Comparison, *, max_tokens: int | None = None) -> tuple[Datum, Datum]:
    """The chosen and the rejected answer behind their prompt, each with `weights` 1 on the answer's own tokens.

    Where an answer is several messages, the assistant's are trained.

    Raises PairTooLong, and ValueError where the renderer cannot write an answer as one sequence, or writes the prompt differently for the two.
    """
    chosen = _answer_datum("chosen", renderer, comparison.prompt, comparison.chosen, max_tokens)
    rejected = _answer_datum("rejected", renderer, comparison.prompt, comparison.rejected, max_tokens)
    if not np.array_equal(_before_the_answer(chosen), _before_the_answer(rejected)):
        raise ValueError(
            f"the renderer {renderer.name!r} writes the prompt in front of the chosen answer differently from that in front of the rejected one, so that "
            "their probabilities cannot be compared"
        )
    return chosen, rejected


def _answer_datum(
    which: str, renderer: Renderer, prompt: Sequence[Message], answer: Sequence[Message], max_tokens: int | None
) -> Datum:
    said = [
        *(attrs.evolve(message, trainable=False) for message in prompt),
        *(attrs.evolve(message, trainable=message.role == "assistant") for message in answer),
    ]
    examples = renderer.supervised_examples(said, TrainOnWhat.CUSTOMIZED)
    if len(examples) != 1:
        raise ValueError(
            f"the {which} answer has {len(answer)} messages, which the renderer {renderer.name!r} cannot write as one sequence: it rewrites what was said before"
        )
    (example,) = examples
    if max_tokens is not None and example.model_input.length > max_tokens:
        raise PairTooLong(
            f"the {which} answer has {example.model_input.length} tokens with its prompt, more than the limit of {max_tokens}"
        )
    datum = supervised_datum(example.model_input, example.weights_T)
    if datum is None:
        raise AssertionError("only a limit on the length leaves an example out, and none was given")
    return datum


def _before_the_answer(datum: Datum) -> NDArray[Any]:
    """The tokens that are read before the first one that counts: images as 0."""
    first = int(np.flatnonzero(datum.loss_inputs["weights"])[0])
    return datum.loss_inputs["target_tokens"][:first]


@attrs.frozen(kw_only=True)
class PairBatches:
    """Batches of pairs by position, for `actors.train_supervised`: step i trains on pairs i·n to (i+1)·n − 1 of the epochs laid end to end.

    Each epoch is walked in its own order. The last batch of all may be smaller; no pair is left out but those that are too long, by setting, which the
    batch's metrics count (`data/pairs`, `data/pairs_too_long`).
    """

    comparisons: Comparisons
    renderer: Renderer
    pairs_per_batch: int = attrs.field(default=32, validator=_positive)
    epochs: int = attrs.field(default=1, validator=_positive)
    shuffle: bool = True
    seed: int = 0
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    """Most tokens of an answer with its prompt; None: no limit."""
    too_long: TooLong = "error"
    """What to do with a pair of which one answer is longer: an error, or leave it out and count it."""

    def __attrs_post_init__(self) -> None:
        if not len(self.comparisons):
            raise ValueError("there are no comparisons to train on")

    def __len__(self) -> int:
        return math.ceil(self.epochs * len(self.comparisons) / self.pairs_per_batch)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first = index * self.pairs_per_batch
        last = min(first + self.pairs_per_batch, self.epochs * len(self.comparisons))
        data: list[Datum] = []
        too_long: list[ValueError] = []
        for row in self._rows(first, last):
            try:
                data.extend(pair_datums(self.renderer, self.comparisons[row], max_tokens=self.max_tokens))
            except PairTooLong as error:
                if self.too_long == "error":
                    raise BadRow(_place(self.comparisons, row), str(error)) from error
                too_long.append(error)
            except BadRow:
                raise
            except ValueError as error:
                raise BadRow(_place(self.comparisons, row), str(error)) from error
        if not data:
            raise ValueError(f"none of its {last - first} pairs fits: {too_long[0]}; raise max_tokens")
        return Batch(tuple(data), {"data/pairs": len(data) / 2, "data/pairs_too_long": float(len(too_long))})

    def _rows(self, first: int, last: int) -> list[int]:
        """Which comparisons stand at positions `first` to `last` − 1."""
        size = len(self.comparisons)
        orders = {epoch: self._order(epoch) for epoch in range(first // size, (last - 1) // size + 1)}
        return [int(orders[position // size][position % size]) for position in range(first, last)]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.comparisons))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.comparisons))


def all_pairs(
    renderer: Renderer, comparisons: Comparisons, *, max_tokens: int | None = None, too_long: TooLong = "error"
) -> Batch:
    """Every comparison as a pair, in order: what an evaluation scores. Metrics and errors as those of `PairBatches`."""
    whole = PairBatches(
        comparisons=comparisons,
        renderer=renderer,
        pairs_per_batch=len(comparisons),
        shuffle=False,
        max_tokens=max_tokens,
        too_long=too_long,
    )
    return whole[0]


def _place(comparisons: Comparisons, row: int) -> str:
    where = getattr(comparisons, "where", None)
    return str(where(row)) if where is not None else f"comparison {row}"
