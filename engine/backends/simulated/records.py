"""What was asked of the backend, in order, as digests: two runs did the same work when their logs are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from engine.backends.values import AdamParams, Datum, ImageChunk, Loss, ModelInput, SampleRequest, SamplingParams

NO_WEIGHTS = "0" * 16
"""Digest of the weights before any training."""


def prompt_digest(prompt: ModelInput) -> str:
    """64 bits of what the prompt holds, as hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    _add_prompt(digest, prompt)
    return digest.hexdigest()


def datum_digest(datum: Datum) -> str:
    """64 bits of a datum: its input, and its loss inputs in the order of their names."""
    digest = hashlib.blake2b(digest_size=8)
    _add_prompt(digest, datum.model_input)
    for name in sorted(datum.loss_inputs):
        array = np.ascontiguousarray(datum.loss_inputs[name])
        digest.update(f"|{name}:{array.dtype.str}:{array.shape}|".encode())
        digest.update(array.data)
    return digest.hexdigest()


def gradient_digest(data: Sequence[Datum], loss: Loss) -> int:
    """What datums add to the gradient. A sum: as with gradients, neither their order nor how they are split into calls matters."""
    salt = repr((loss.name, sorted(loss.params.items()))).encode()
    total = 0
    for datum in data:
        digest = hashlib.blake2b(salt, digest_size=8)
        digest.update(datum_digest(datum).encode())
        total += int.from_bytes(digest.digest(), "little")
    return total & (1 << 64) - 1


def stepped(weights: str, gradient: int, params: AdamParams) -> str:
    """Digest of the weights after an optimizer step."""
    text = repr((weights, gradient, attrs.astuple(params)))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _add_prompt(digest: hashlib.blake2b, prompt: ModelInput) -> None:
    for chunk in prompt.chunks:
        if isinstance(chunk, ImageChunk):
            source = chunk.source if isinstance(chunk.source, bytes) else chunk.source.encode()
            digest.update(f"|image:{len(source)}|".encode())
            digest.update(source)
        else:
            digest.update(chunk.tokens.data)


@attrs.frozen
class SampleEntry:
    """One sampling request. Equal entries asked for the same thing; when they did so is not compared."""

    seed: int
    num_samples: int
    prompt: str
    """Digest."""
    version: int
    weights: str
    """Digest of the weights asked."""
    params: SamplingParams
    at: float = attrs.field(eq=False)


@attrs.frozen
class ScoreEntry:
    """One sequence to score."""

    sequence: str
    """Digest."""
    version: int
    weights: str
    """Digest of the weights asked."""
    at: float = attrs.field(eq=False)


@attrs.frozen
class TrainingEntry:
    """One submission to the trainer, with the time it was worked on. Times are not compared."""

    call: str
    version: int
    """Optimizer steps submitted before it."""
    loss: str = ""
    loss_params: Mapping[str, float] = attrs.field(factory=dict)
    datums: tuple[str, ...] = ()
    """Digests, in the order given."""
    adam: AdamParams | None = None
    submitted: float = attrs.field(default=0.0, eq=False)
    began: float = attrs.field(default=0.0, eq=False)
    finished: float = attrs.field(default=0.0, eq=False)


@attrs.define
class RequestLog:
    """Everything asked of a backend, in the order of asking."""

    sampling: list[SampleEntry] = attrs.field(factory=list)
    training: list[TrainingEntry] = attrs.field(factory=list)
    scoring: list[ScoreEntry] = attrs.field(factory=list)

    def trained(self, version: int) -> tuple[str, ...]:
        """Digests of the datums whose gradients made version + 1 out of `version`, in order."""
        return tuple(
            datum
            for entry in self.training
            if entry.call == "forward_backward" and entry.version == version
            for datum in entry.datums
        )

    def add_sample(self, request: SampleRequest, prompt: str, version: int, weights: str, at: float) -> None:
        """Notes a request."""
        self.sampling.append(
            SampleEntry(request.seed, request.num_samples, prompt, version, weights, request.params, at)
        )
