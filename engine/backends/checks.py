"""Whether datums and inputs fit, before anything is computed or sent: what every backend with a real model checks.

Each function raises RequestRejected, naming the datum's index and the field, for the first thing that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends.errors import RequestRejected
from engine.backends.values import Datum, ImageChunk, ModelInput, SamplingParams, TokenChunk


def check_datums(
    data: Sequence[Datum],
    loss: str,
    reads: Sequence[str],
    *,
    vocab_size: int | None,
    max_context: int | None,
    no_images: str | None = None,
    pairs: bool = False,
) -> None:
    """The datums of one pass against what their loss `reads` beside `target_tokens`.

    `vocab_size`, `max_context`: None where they are not known. `no_images`: why this backend takes none; None: it does. `pairs`: datums come in pairs.
    """
    if not data:
        raise RequestRejected("no datums were given: a pass needs at least one")
    if pairs and len(data) % 2:
        raise RequestRejected(
            f"the loss {loss!r} takes datums in pairs, but there are {len(data)}: datum {len(data) - 1} is alone"
        )
    for index, datum in enumerate(data):
        check_input(f"datum {index}: model_input", datum.model_input, vocab_size=vocab_size, no_images=no_images)
        length = datum.model_input.length
        if max_context is not None and length > max_context:
            raise RequestRejected(
                f"datum {index}: model_input has {length} tokens; the model takes at most {max_context}"
            )
        for field in ("target_tokens", *reads):
            values = datum.loss_inputs.get(field)
            if values is None:
                raise RequestRejected(f"datum {index}: loss_inputs has no {field!r}, which the loss {loss!r} reads")
            _check_array(index, field, np.asarray(values), length)
        _check_ids(f"datum {index}: 'target_tokens'", np.asarray(datum.loss_inputs["target_tokens"]), vocab_size)


def check_input(name: str, value: ModelInput, *, vocab_size: int | None, no_images: str | None = None) -> None:
    """A prompt, a sequence to score, or a datum's input, called `name` in messages."""
    if value.length == 0:
        raise RequestRejected(f"{name}: it is empty; the model needs at least one token")
    for chunk in value.chunks:
        if isinstance(chunk, TokenChunk):
            if chunk.length:
                _check_ids(name, chunk.tokens, vocab_size)
        elif isinstance(chunk, ImageChunk) and no_images is not None:
            raise RequestRejected(f"{name}: it holds an image; {no_images}")


def check_sampling(params: SamplingParams) -> None:
    """What the values' own validators leave open."""
    if params.top_k == 0 or params.top_k < -1:
        raise RequestRejected(f"params.top_k: {params.top_k}; it must be -1 (no limit) or at least 1")
    if "" in params.stop:
        raise RequestRejected("params.stop: an empty string would end every completion at once")


def _check_array(index: int, field: str, values_T: NDArray[np.generic], length: int) -> None:
    if values_T.shape != (length,):
        raise RequestRejected(
            f"datum {index}: {field!r} has shape {values_T.shape}, but model_input has {length} tokens: it must be ({length},)"
        )
    if values_T.dtype.kind not in "iufb":
        raise RequestRejected(f"datum {index}: {field!r} holds {values_T.dtype}, not numbers")
    if values_T.dtype.kind == "f" and not np.isfinite(values_T).all():
        position = int(np.flatnonzero(~np.isfinite(values_T))[0])
        raise RequestRejected(
            f"datum {index}: {field!r} is {values_T[position]} at position {position}, not a finite number"
        )


def _check_ids(name: str, ids_T: NDArray[np.generic], vocab_size: int | None) -> None:
    if ids_T.dtype.kind not in "iu":
        raise RequestRejected(f"{name}: it holds {ids_T.dtype}, not token ids")
    low, high = int(ids_T.min()), int(ids_T.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        wrong = low if low < 0 else high
        known = "" if vocab_size is None else f"; the vocabulary ends at {vocab_size - 1}"
        raise RequestRejected(f"{name}: token id {wrong}{known}")
