"""What a conformance check is given: a way to open the backend, and what may be asked of it.

Dimension suffixes: `T` positions of one datum.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.ports import Backend, Snapshot
from engine.backends.values import (
    AdamParams,
    Completion,
    Datum,
    Logprobs,
    Loss,
    ModelInput,
    SampleRequest,
    SamplingParams,
)
from engine.conformance import NotConforming, require

__all__ = [
    "CROSS_ENTROPY",
    "Check",
    "NotConforming",
    "Subject",
    "close",
    "policy",
    "require",
    "same",
    "snapshot_of",
    "step",
]


@attrs.frozen
class Subject:
    """A backend under test. Small models and short sequences are enough; a check asks for some dozens of tokens."""

    open: Callable[[], AbstractAsyncContextManager[Backend]]
    """Opens a fresh backend. Every one starts from the same weights."""
    tokens: Sequence[int]
    """At least eight ids that prompts may be made of."""
    tolerance: float = 1e-4
    """Largest difference between log-probs that are meant to be equal: sampler's, trainer's, and after a restore."""
    learning_rate: float = 1e-2
    """Large enough for one step to move log-probs by more than `tolerance`."""
    max_tokens: int = 12
    gaps: Mapping[str, str] = attrs.field(factory=dict)
    """Checks this backend does not pass by design: name of the check → why. They are reported, not run."""

    def prompt(self, start: int = 0, length: int = 5) -> ModelInput:
        """A prompt of the subject's tokens, another for every `start`."""
        return ModelInput.from_tokens([self.tokens[(start + i) % len(self.tokens)] for i in range(length)])

    def request(self, seed: int = 1, num_samples: int = 1, start: int = 0, **params: object) -> SampleRequest:
        """A sampling request; `params` go into SamplingParams."""
        sampling = SamplingParams(**{"max_tokens": self.max_tokens, **params})  # type: ignore[arg-type]
        return SampleRequest(self.prompt(start), sampling, seed=seed, num_samples=num_samples)

    def datum(self, start: int = 0, *, loss: str = "cross_entropy", advantage: float = 1.0) -> Datum:
        """A datum that any of the losses takes, trained on its last four positions."""
        whole = self.prompt(start, 9).tokens
        trained_T = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
        inputs: dict[str, NDArray[np.generic]] = {"target_tokens": whole[1:].astype(np.int64)}
        if loss == "cross_entropy":
            inputs["weights"] = trained_T * np.float32(advantage)
        else:
            inputs["logprobs"] = trained_T * np.float32(-2.0)
            inputs["advantages"] = trained_T * np.float32(advantage)
        return Datum(ModelInput.from_tokens(whole[:-1]), inputs)

    def adam(self) -> AdamParams:
        """An optimizer step that moves something."""
        return AdamParams(learning_rate=self.learning_rate)


Check = Callable[[Subject], Awaitable[None]]
"""Raises NotConforming when the subject breaks the promise that the check's docstring states."""

CROSS_ENTROPY = Loss("cross_entropy")


def close(a: Iterable[Logprobs], b: Iterable[Logprobs], tolerance: float) -> bool:
    """Whether two lists of log-probs agree."""
    left, right = np.concatenate([*a]), np.concatenate([*b])
    return left.shape == right.shape and bool(np.allclose(left, right, rtol=0.0, atol=tolerance, equal_nan=True))


def same(a: Sequence[Completion], b: Sequence[Completion]) -> bool:
    """Whether two lists of completions have the same tokens and ends."""
    return len(a) == len(b) and all(
        np.array_equal(x.tokens, y.tokens) and x.stop_reason == y.stop_reason for x, y in zip(a, b, strict=True)
    )


async def snapshot_of(backend: Backend) -> Snapshot:
    """The current weights, frozen."""
    return await backend.snapshot().result()


async def step(backend: Backend, subject: Subject, *data: Datum) -> None:
    """One optimizer step on `data`, waited for."""
    backend.forward_backward(data or [subject.datum()], CROSS_ENTROPY)
    await backend.optim_step(subject.adam()).result()


async def policy(backend: Backend, subject: Subject) -> list[Logprobs]:
    """The trainer's view of the current weights: log-probs of two fixed datums."""
    result = await backend.forward([subject.datum(0), subject.datum(3)], CROSS_ENTROPY).result()
    return list(result.logprobs)
