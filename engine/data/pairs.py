"""Comparisons as pairs of datums: what DPO trains on.

    Comparison ──renderer──> prompt + chosen, prompt + rejected ──> (chosen datum, rejected datum)
    pair_batches(read_comparisons(rows), ToPairs(renderer=renderer))         chosen, rejected, chosen, rejected, ...

Nothing is padded: a datum is as long as its tokens. The answers' tokens alone have weight. A pair stays whole: it is in a batch with both its datums or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum
from engine.data.comparisons import Comparison
from engine.data.errors import DataError
from engine.data.examples import Examples, OnBadRow
from engine.data.supervised import SupervisedBatches, datums_of
from engine.rendering import Message, Renderer, TrainOnWhat
from engine.training.supervised import supervised_datum

PairTooLongPolicy = Literal["error", "skip"]


class PairTooLong(ValueError):
    """An answer has more tokens, its prompt included, than it may have."""


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
class ToPairs:
    """How a comparison becomes its two datums."""

    renderer: Renderer
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
    """The most tokens of an answer with its prompt; None: no limit."""
    too_long: PairTooLongPolicy = "error"
    """What to do with a pair of which one answer is longer: an error, or leave it out and count it (`data/too_long`)."""

    def __call__(self, comparison: Comparison, counts: Counter[str]) -> list[Datum]:
        """Chosen and rejected; nothing for a pair that is left out. Raises ValueError for one that cannot be trained on."""
        try:
            return list(pair_datums(self.renderer, comparison, max_tokens=self.max_tokens))
        except PairTooLong as error:
            if self.too_long == "error":
                raise DataError(f"{error}: raise it, or have such pairs skipped") from error
            counts["data/too_long"] += 1
            return []


def pair_batches(
    comparisons: Examples[Comparison],
    to_pairs: ToPairs,
    *,
    batch_size: int = 32,
    epochs: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
) -> SupervisedBatches[Comparison]:
    """Batches of `batch_size` whole pairs, with the weights 1 that DPO's sums over answers need."""
    return SupervisedBatches(
        examples=comparisons,
        to_datums=to_pairs,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=shuffle,
        seed=seed,
        on_bad_row=on_bad_row,
        mean=False,
    )


def held_out_pairs(
    comparisons: Examples[Comparison], to_pairs: ToPairs, on_bad_row: OnBadRow = "error"
) -> tuple[list[Datum], Counter[str]]:
    """All pairs, in order, for an evaluation, and what was counted. Raises DataError where none is left."""
    datums, counts, reasons = datums_of(comparisons, range(len(comparisons)), to_pairs, on_bad_row)
    if not datums:
        raise DataError(
            f"{comparisons.name}: none of its {len(comparisons)} held-out pairs can be scored: {'; '.join(reasons) or 'all are too long'}"
        )
    return datums, counts
