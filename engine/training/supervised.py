"""Supervised datums from tokens and weights, and what their losses mean.

Dimension suffixes: `L` tokens of one example, `T` = L − 1 positions of its datum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum, ImageChunk, ModelInput, TokenChunk, Tokens


@attrs.frozen
class Batch(Sequence[Datum]):
    """The datums of a step, and what was counted when they were made: rows left out, examples cut short."""

    data: tuple[Datum, ...]
    metrics: Mapping[str, float] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Datum: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Datum, ...]: ...
    def __getitem__(self, index: int | slice) -> Datum | tuple[Datum, ...]:
        return self.data[index]

    def __iter__(self) -> Iterator[Datum]:
        return iter(self.data)


def supervised_datum(
    example: ModelInput | NDArray[Any] | Sequence[int],
    weights: NDArray[Any] | Sequence[float],
    *,
    max_tokens: int | None = None,
    too_long: Literal["error", "truncate", "skip"] = "error",
) -> Datum | None:
    """A datum for cross-entropy.

    Args:
        example: L tokens, or an input of length L that ends in a token.
        weights: shape (L,); the weight of a token is what predicting it counts. That of token 0 has no effect, as nothing predicts it.
        max_tokens: the most tokens an example may have; None: no limit.
        too_long: what to do with a longer one: an error, its first `max_tokens`, or None, for the caller to count. An example that keeps no
            weight when it is truncated has nothing to learn from, and is None too.

    Returns:
        A datum with `target_tokens` (int32) and `weights` (float32), each of shape (L − 1,); or None, see `too_long`.

    Raises:
        ValueError: fewer than two tokens, weights of another length, negative or not finite, no weight above 0 anywhere, an example that is too long.
    """
    model_input = example if isinstance(example, ModelInput) else ModelInput.from_tokens(example)
    weights_L = np.asarray(weights, np.float32)
    _check(model_input, weights_L)
    if max_tokens is not None and model_input.length > max_tokens:
        if too_long == "error":
            raise ValueError(f"the example has {model_input.length} tokens, more than the limit of {max_tokens}")
        if too_long == "skip":
            return None
        model_input = _without_images_at_the_end(_first(model_input, max_tokens))
        weights_L = weights_L[: model_input.length]
        if not weights_L[1:].any():
            return None
    tokens_L = _targets(model_input)
    inputs = _first(model_input, model_input.length - 1)
    return Datum(inputs, {"target_tokens": tokens_L[1:], "weights": weights_L[1:]})


def _check(model_input: ModelInput, weights_L: NDArray[np.float32]) -> None:
    if model_input.length < 2:
        raise ValueError(
            f"an example needs at least two tokens, one to read and one to predict; this one has {model_input.length}"
        )
    if weights_L.shape != (model_input.length,):
        raise ValueError(f"the example has {model_input.length} tokens but weights of shape {weights_L.shape}")
    if not (np.isfinite(weights_L).all() and (weights_L >= 0).all()):
        at = int(np.flatnonzero(~(np.isfinite(weights_L) & (weights_L >= 0)))[0])
        raise ValueError(f"the weight of token {at} is {weights_L[at]}; weights must be finite and at least 0")
    if not weights_L[1:].any():
        raise ValueError("no token of the example has a weight above 0, so there is nothing to learn from it")
    if isinstance(model_input.chunks[-1], ImageChunk):
        raise ValueError("the example ends in an image, which cannot be predicted")


def _targets(model_input: ModelInput) -> Tokens:
    """Token ids, 0 where an image stands: those positions have no token, and their weights are 0."""
    return np.concatenate(
        [
            chunk.tokens if isinstance(chunk, TokenChunk) else np.zeros(chunk.length, np.int32)
            for chunk in model_input.chunks
        ]
    )


def _first(model_input: ModelInput, count: int) -> ModelInput:
    """The first `count` positions, or fewer: an image that does not fit whole is left out, and so is what follows it."""
    chunks: list[TokenChunk | ImageChunk] = []
    for chunk in model_input.chunks:
        if chunk.length <= count:
            chunks.append(chunk)
            count -= chunk.length
            continue
        if isinstance(chunk, TokenChunk) and count:
            chunks.append(TokenChunk(chunk.tokens[:count]))
        break
    return ModelInput(tuple(chunks))


def _without_images_at_the_end(model_input: ModelInput) -> ModelInput:
    chunks = list(model_input.chunks)
    while chunks and isinstance(chunks[-1], ImageChunk):
        chunks.pop()
    return ModelInput(tuple(chunks))


def mean_nll(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> float:
    """Negative log-likelihood in nats per unit of weight: with weights 0 and 1, per trained token. NaN when nothing has weight."""
    total, weight = _weighted_nll(data, logprobs)
    return total / weight if weight else math.nan


def bits_per_byte(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]], text_bytes: int) -> float:
    """Negative log-likelihood in bits for each UTF-8 byte of the text that the weighted tokens spell: comparable across tokenizers."""
    if text_bytes <= 0:
        raise ValueError(f"bits per byte need the text's size in bytes, not {text_bytes}")
    return _weighted_nll(data, logprobs)[0] / math.log(2) / text_bytes


def _weighted_nll(data: Sequence[Datum], logprobs: Sequence[NDArray[Any]]) -> tuple[float, float]:
    total = weight = 0.0
    for index, (datum, logprobs_T) in enumerate(zip(data, logprobs, strict=True)):
        weights_T = datum.loss_inputs["weights"].astype(np.float64)
        if len(weights_T) != len(logprobs_T):
            raise ValueError(f"datum {index} has {len(weights_T)} positions but {len(logprobs_T)} logprobs")
        trained = weights_T != 0  # where nothing counts, a logprob may be anything
        total -= float(np.dot(weights_T[trained], np.asarray(logprobs_T, np.float64)[trained]))
        weight += float(weights_T.sum())
    return total, weight
