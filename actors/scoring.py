"""Scoring: log-probabilities of given tokens under a policy that does not learn in this run, such as a reference or a teacher.

Dimension suffixes: `T` positions of one datum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import anyio
import attrs
import numpy as np

from engine.backends.values import Datum, Logprobs, ModelInput
from engine.training.kl import full_sequence

CONCURRENCY = 64
"""Sequences being scored at once, where nothing else is asked for."""


class Scorer(Protocol):
    """Whoever scores tokens: a `ReferencePolicy`, a teacher on another backend, anything with this method."""

    async def compute_logprobs(self, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN."""
        ...


async def score_targets(scorer: Scorer, data: Sequence[Datum], *, concurrency: int = CONCURRENCY) -> list[Logprobs]:
    """Log-probabilities of the datums' targets, one array (T,) each; at most `concurrency` sequences at a time.

    Raises ValueError, naming the datum, where a scorer gives an array of another length.
    """
    limiter = anyio.Semaphore(concurrency)
    scores: list[Logprobs | None] = [None] * len(data)

    async def one(index: int) -> None:
        try:
            scores[index] = _of_targets(index, data[index], await scorer.compute_logprobs(full_sequence(data[index])))
        finally:
            limiter.release()

    async with anyio.create_task_group() as tasks:
        for index in range(len(data)):
            await limiter.acquire()  # here, not in the task: sequences are asked for in their order
            tasks.start_soon(one, index)
    return [score_T for score_T in scores if score_T is not None]


def _of_targets(index: int, datum: Datum, logprobs: Logprobs) -> Logprobs:
    wanted = datum.model_input.length + 1
    if np.shape(logprobs) != (wanted,):
        raise ValueError(
            f"datum {index}: the scorer gave logprobs of shape {np.shape(logprobs)} for a sequence of {wanted} tokens"
        )
    return logprobs[1:]


async def with_reference_logprobs(data: Sequence[Datum], reference: Scorer) -> list[Datum]:
    """The datums with `reference_logprobs` of their targets, float32, as the losses `dpo` and `kl_*` read them.

    Made to be a supervised run's `prepare`. Where a target has no weight its logprob is 0: nothing reads it, and it may be anything.

    Raises ValueError, naming the datum and the position, where a weighted target's logprob is not finite.
    """
    scored = []
    for index, (datum, score_T) in enumerate(zip(data, await score_targets(reference, data), strict=True)):
        counts_T = _counting(datum)
        if not np.isfinite(score_T[counts_T]).all():
            at = int(np.flatnonzero(counts_T & ~np.isfinite(score_T))[0])
            raise ValueError(f"datum {index}: the reference logprob of the target at position {at} is {score_T[at]}")
        reference_T = np.where(counts_T, score_T, 0.0).astype(np.float32)
        scored.append(attrs.evolve(datum, loss_inputs={**datum.loss_inputs, "reference_logprobs": reference_T}))
    return scored


def _counting(datum: Datum) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Positions whose target a loss looks at, shape (T,)."""
    for name in ("weights", "mask"):
        if name in datum.loss_inputs:
            counts_T: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.asarray(datum.loss_inputs[name]) != 0
            return counts_T
    return np.ones(datum.model_input.length, bool)
