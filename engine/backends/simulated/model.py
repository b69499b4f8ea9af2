"""The simulated model: a fixed distribution over tokens that ignores its context, and can depend on the training history.

Because a token's log-probability does not depend on what stands before it, sampled log-probs, `compute_logprobs` and the trainer's
log-probs agree exactly, and everything is a table look-up. Tokens come from a pool drawn once; a sample is a window of the pool that
starts where (backend seed, request seed, prompt, sample index) say. Two requests in some thousands therefore share a completion.

Dimension suffixes: `V` token ids, `P` positions of the pool, `N` samples, `T` tokens of one completion.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.simulated.distributions import Constant, Distribution, ticks
from engine.backends.values import Completion, ImageChunk, Logprobs, ModelInput, SampleRequest, StopReason, Tokens

_MASK = (1 << 64) - 1
_POOL = 1 << 15
_STRIDE = 131  # odd, so that 2^15 samples of one request start at different places
UNLIKELY = -20.0
"""Log-probability of a token outside the simulated vocabulary."""


@attrs.frozen
class Draw:
    """One sample as a script wants it."""

    tokens: Tokens
    """Shape (T,), at least one token."""
    seconds: float = 0.0
    """How long a slot is held for it."""
    logprobs: Logprobs | None = None
    """Shape (T,); None: those of the simulated model."""
    stop_reason: StopReason = "stop"


Script = Callable[[SampleRequest, int], Draw]
"""Content and duration of sample `i` of a request: a pure function, for workloads that other systems are given too."""


@attrs.frozen
class SamplerModel:
    """What completions look like and how long they take. `seconds` is for one sample, start to end."""

    length: Distribution = attrs.field(factory=lambda: Constant(32))
    """Tokens at which a completion ends by itself; read only where `sec_per_token` is not set."""
    seconds: Distribution = attrs.field(factory=Constant)
    sec_per_token: float | None = None
    """When set, the length follows from the duration: ceil(seconds / sec_per_token)."""
    scoring: Distribution = attrs.field(factory=Constant)
    """Seconds of a slot that `compute_logprobs` takes."""
    vocabulary: tuple[int, int] = (32, 127)
    """Token ids are drawn from this half-open range."""
    script: Script | None = None
    """Takes the place of all the above."""
    policy_dependent: bool = False
    """Token probabilities depend on everything trained so far: a difference in training history changes all that follows."""

    def __attrs_post_init__(self) -> None:
        low, high = self.vocabulary
        if not 0 <= low < high - 1:
            raise ValueError(f"vocabulary must be a range (low, high) of at least two ids, got {self.vocabulary}")

    @property
    def timed(self) -> bool:
        """Whether any sample can take time."""
        return self.script is not None or self.seconds != Constant(0.0)


class TokenModel:
    """Token probabilities at one state of the weights, and the pool drawn from them."""

    def __init__(self, vocabulary: tuple[int, int], seed: int, weights: str | None) -> None:
        """`weights`: digest of the training history, or None for a model that does not learn."""
        low, high = vocabulary
        rng = np.random.default_rng(seed)
        logits_V = rng.normal(0.0, 0.7, high - low)
        uniform_P = rng.random(_POOL)
        if weights is not None:
            logits_V += np.random.default_rng(int(weights, 16)).normal(0.0, 0.1, high - low)
        probabilities_V = np.exp(logits_V - logits_V.max())
        probabilities_V /= probabilities_V.sum()
        self._table_V = np.full(high + 1, UNLIKELY, np.float32)
        self._table_V[low:high] = np.log(probabilities_V)
        drawn_P = np.searchsorted(np.cumsum(probabilities_V)[:-1], uniform_P, side="right")
        self._tokens_P: Tokens = (drawn_P + low).astype(np.int32)
        self._logprobs_P: Logprobs = self._table_V[self._tokens_P]
        self._windows: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}

    def logprobs(self, tokens: NDArray[np.int64] | Tokens) -> Logprobs:
        """Log-probability of each token."""
        return self._table_V.take(tokens, mode="clip")

    def window(self, start: int, length: int) -> tuple[Tokens, Logprobs]:
        """`length` tokens of the (endless, repeating) pool from `start`, and their log-probs."""
        end = start + length
        if end > len(self._tokens_P):
            self._reach(end)
        return self._tokens_P[start:end], self._logprobs_P[start:end]

    def windows(self, start: int, count: int, length: int) -> tuple[list[Tokens], list[Logprobs]]:
        """The windows of samples 0 … count - 1 of a request that starts at `start`: views, no copies."""
        stop = start + (count - 1) * _STRIDE + 1
        if length not in self._windows or len(self._windows[length][0]) < stop:
            self._reach(stop + length)
            self._windows[length] = (
                np.lib.stride_tricks.sliding_window_view(self._tokens_P, length),
                np.lib.stride_tricks.sliding_window_view(self._logprobs_P, length),
            )
        tokens_PT, logprobs_PT = self._windows[length]
        return list(tokens_PT[start:stop:_STRIDE]), list(logprobs_PT[start:stop:_STRIDE])

    def _reach(self, end: int) -> None:
        if end > len(self._tokens_P):
            size = -(-end // _POOL) * _POOL
            self._tokens_P = np.resize(self._tokens_P[:_POOL], size)
            self._logprobs_P = np.resize(self._logprobs_P[:_POOL], size)


def _mixed(number: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    number &= _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def unit(stream: int, index: int) -> float:
    """Number `index` of a stream of uniform numbers in (0, 1)."""
    return ((_mixed(stream + (index + 1) * 0x9E3779B97F4A7C15) >> 11) + 0.5) * 2.0**-53


def prompt_checksum(prompt: ModelInput) -> int:
    """A cheap checksum of what the prompt holds."""
    checksum = 0
    for chunk in prompt.chunks:
        if isinstance(chunk, ImageChunk):
            source = chunk.source if isinstance(chunk.source, bytes) else chunk.source.encode()
            checksum = zlib.crc32(source, checksum ^ 1)
        else:
            checksum = zlib.crc32(chunk.tokens.data, checksum)
    return checksum


class Sampler:
    """Turns requests into completions and their durations. Holds no state that a request could change."""

    def __init__(self, model: SamplerModel, seed: int) -> None:
        self._model = model
        self._seed = _mixed(seed + 0x5851F42D4C957F2D)
        length = model.length
        self._fixed = int(length.value) if isinstance(length, Constant) and not model.timed else None
        if isinstance(length, Constant) and length.value < 1:
            raise ValueError(f"length: a completion has at least one token, got {length.value}")

    def draw(self, tokens: TokenModel, request: SampleRequest, version: int) -> tuple[list[Completion], list[float]]:
        """Completions and their seconds, by sample. Greedy requests (temperature 0) get the same sample `num_samples` times."""
        params = request.params
        greedy = params.temperature == 0.0
        seed = 0 if greedy else request.seed
        stream = _mixed(self._seed ^ prompt_checksum(request.prompt) << 17 ^ (seed * 0x9E3779B97F4A7C15 & _MASK))
        start = stream & (_POOL - 1)
        stop_ids = [stop for stop in params.stop if isinstance(stop, int)] if params.stop else None
        if self._fixed is not None and not stop_ids and not greedy:
            length = min(self._fixed, params.max_tokens)
            reason: StopReason = "stop" if self._fixed <= length else "length"
            if request.num_samples == 1:
                return [Completion(*tokens.window(start, length), reason, version)], []
            windows = tokens.windows(start, request.num_samples, length)
            return [Completion(t, p, reason, version) for t, p in zip(*windows, strict=True)], []
        drawn = [
            self._one(tokens, request, version, stream, start, 0 if greedy else i, stop_ids)
            for i in range(request.num_samples)
        ]
        return [completion for completion, _ in drawn], [seconds for _, seconds in drawn]

    def scoring_seconds(self, sequence: ModelInput) -> float:
        """How long a sequence takes to be scored: the same one always the same."""
        stream = _mixed(self._seed ^ prompt_checksum(sequence) << 17)
        return ticks(self._model.scoring.draw(unit(stream, 0), unit(stream, 1)))

    def _one(
        self,
        tokens: TokenModel,
        request: SampleRequest,
        version: int,
        stream: int,
        start: int,
        index: int,
        stop_ids: list[int] | None,
    ) -> tuple[Completion, float]:
        model = self._model
        if model.script is not None:
            draw = model.script(request, index)
            logprobs_T = tokens.logprobs(draw.tokens) if draw.logprobs is None else draw.logprobs
            return Completion(draw.tokens, logprobs_T, draw.stop_reason, version), ticks(draw.seconds)
        seconds = model.seconds.draw(unit(stream, 4 * index), unit(stream, 4 * index + 1))
        if model.sec_per_token is not None:
            natural = seconds / model.sec_per_token
        else:
            natural = model.length.draw(unit(stream, 4 * index + 2), unit(stream, 4 * index + 3))
        length = max(1, -int(-natural // 1))
        kept = min(length, request.params.max_tokens)
        if model.sec_per_token is not None:
            seconds = kept * model.sec_per_token
        tokens_T, logprobs_T = tokens.window((start + index * _STRIDE) % _POOL, kept)
        reason: StopReason = "stop" if length <= kept else "length"
        if stop_ids:
            tokens_T, reason = _stopped(tokens_T, stop_ids, reason)
            logprobs_T = tokens.logprobs(tokens_T)
        return Completion(tokens_T, logprobs_T, reason, version), ticks(seconds)


def _stopped(tokens_T: Tokens, stop_ids: list[int], reason: StopReason) -> tuple[Tokens, StopReason]:
    """Cut behind the first stop token; a completion that ends by itself ends in one."""
    found = np.flatnonzero(np.isin(tokens_T, stop_ids))
    if found.size:
        return tokens_T[: found[0] + 1], "stop"
    if reason == "stop":
        tokens_T = tokens_T.copy()
        tokens_T[-1] = stop_ids[0]
    return tokens_T, reason
