"""Values that cross the backend ports: what is asked of a model, and what comes back.

Field names follow the Tinker SDK's where the same thing is meant. Arrays are numpy; all of them are read-only by convention.

Dimension suffixes: `T` positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

StopReason = Literal["stop", "length"]
"""stop: one of `SamplingParams.stop` was reached. length: the limit on tokens was, or the end of the context."""
Tokens = NDArray[np.int32]
"""Token ids, shape (T,)."""
Logprobs = NDArray[np.float32]
"""Log-probabilities of tokens, shape (T,), natural log."""


def _arrays_equal(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left is right or np.array_equal(left, right)


_same_array = attrs.cmp_using(eq=_arrays_equal)


def _as_tokens(tokens: Any) -> Tokens:
    return np.ascontiguousarray(tokens, dtype=np.int32)


@attrs.frozen
class TokenChunk:
    """A run of text tokens, shape (T,), int32."""

    tokens: Tokens = attrs.field(converter=_as_tokens, eq=_same_array)

    @property
    def length(self) -> int:
        """Positions this chunk takes in the model's context."""
        return len(self.tokens)


@attrs.frozen
class ImageChunk:
    """An image by reference. Nothing is fetched or decoded before a backend needs the pixels."""

    source: bytes | str
    """The encoded image itself, or a path or URL to it."""
    expected_tokens: int
    """Positions the image takes in the model's context, by the model family's own rule."""

    @property
    def length(self) -> int:
        """Positions this chunk takes in the model's context."""
        return self.expected_tokens


Chunk = TokenChunk | ImageChunk


@attrs.frozen
class ModelInput:
    """What a model reads: chunks of tokens, images as references."""

    chunks: tuple[Chunk, ...]

    @classmethod
    def from_tokens(cls, tokens: Any) -> ModelInput:
        """A text-only input from any sequence of token ids."""
        return cls((TokenChunk(tokens),))

    @property
    def length(self) -> int:
        """Positions in the model's context."""
        length = 0
        for chunk in self.chunks:
            length += chunk.length
        return length

    @property
    def tokens(self) -> Tokens:
        """The token ids, shape (T,), of a text-only input.

        Raises ValueError when the input holds an image: an image has no token ids.
        """
        if len(self.chunks) == 1 and isinstance(self.chunks[0], TokenChunk):
            return self.chunks[0].tokens
        parts = []
        for chunk in self.chunks:
            if isinstance(chunk, ImageChunk):
                raise ValueError("this model input holds an image, so it has no plain token ids")
            parts.append(chunk.tokens)
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def append(self, tokens: Any) -> ModelInput:
        """A new input with `tokens` behind the last chunk; two neighbouring runs of text become one."""
        added = _as_tokens(tokens)
        if self.chunks and isinstance(self.chunks[-1], TokenChunk):
            return ModelInput((*self.chunks[:-1], TokenChunk(np.concatenate((self.chunks[-1].tokens, added)))))
        return ModelInput((*self.chunks, TokenChunk(added)))


@attrs.frozen
class Datum:
    """One training sequence: the input, and per-position arrays that the loss reads.

    `loss_inputs` arrays have shape (T,) with T = `model_input.length`; position t of `target_tokens` is the token that
    follows input position t. Which others there are, the loss says (`engine.training.losses`): cross_entropy reads `target_tokens` and `weights`;
    importance_sampling, ppo and cispo read `target_tokens`, `logprobs` (natural log, of the policy that sampled) and `advantages`.
    """

    model_input: ModelInput
    loss_inputs: Mapping[str, NDArray[Any]]


@attrs.frozen
class Loss:
    """A loss by name with its parameters; which names exist is the backend's to say (`Capabilities.losses`)."""

    name: str
    params: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen
class AdamParams:
    """One optimizer step of AdamW (arXiv:1711.05101)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    """Share of the old value that the gradient's running mean keeps a step,"""
    beta2: float = 0.95
    """and that its running mean square keeps."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """Decoupled: every step takes `learning_rate * weight_decay` of each weight away."""
    grad_clip_norm: float = 0.0
    """Largest L2 norm of the gradient, which is a sum over tokens; 0: no limit."""


@attrs.frozen
class SamplingParams:
    """How a completion is drawn."""

    max_tokens: int = attrs.field(default=256, validator=attrs.validators.ge(1))
    """Most tokens of the completion."""
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """What logits are divided by; 0 is greedy."""
    top_p: float = attrs.field(default=1.0, validator=[attrs.validators.gt(0.0), attrs.validators.le(1.0)])
    """Draw from the fewest tokens whose probabilities add up to this; 1: from all."""
    top_k: int = -1
    """Draw from so many of the likeliest tokens; -1: from all."""
    stop: tuple[str | int, ...] = ()
    """Stop strings and stop token ids. The tokens that completed the stop are part of the completion."""


@attrs.frozen
class SampleRequest:
    """`num_samples` completions of one prompt. Sample i is drawn from the random stream (`seed`, i), whatever else is in the batch."""

    prompt: ModelInput
    params: SamplingParams
    seed: int
    num_samples: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    priority: float = 0.0
    """Lower goes first where a backend has a queue."""


@attrs.frozen
class Completion:
    """One sampled continuation.

    `logprobs` are those of the model's own distribution (temperature 1, no top-p or top-k), so that they agree with a
    training backend's logprobs of the same tokens.
    """

    tokens: Tokens = attrs.field(eq=_same_array)
    """Shape (T,), int32; includes the tokens of the stop that ended it."""
    logprobs: Logprobs = attrs.field(eq=_same_array)
    """Shape (T,), float32, natural log."""
    stop_reason: StopReason
    version: int
    """Policy version that produced the tokens: optimizer steps behind the weights."""


@attrs.frozen
class ForwardBackwardResult:
    """What a forward (and backward) pass over datums gave."""

    loss: float
    """Sum over all tokens of all datums."""
    logprobs: tuple[Logprobs, ...]
    """Per datum, shape (T,): log-probability of each target token under the current policy."""
    metrics: Mapping[str, float] = attrs.field(factory=dict)
