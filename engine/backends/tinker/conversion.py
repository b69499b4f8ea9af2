"""The engine's values as the SDK's, and its answers as the engine's.

Dimension suffixes: `T` positions of one sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.errors import BackendError, RequestRejected
from engine.backends.ports import Tokenizer
from engine.backends.stops import StopWatch
from engine.backends.values import (
    AdamParams,
    Completion,
    Datum,
    ImageChunk,
    Logprobs,
    ModelInput,
    SampleRequest,
    SamplingParams,
    StopReason,
    TokenChunk,
)
from engine.runtime.seeds import derive_seed

_INTEGERS = frozenset({"target_tokens"})
_SEEDS = 2**31 - 2**16
"""Servers take 32-bit seeds and count up from them for the samples of one request."""
_FORMATS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


def sdk_input(types: ModuleType | Any, value: ModelInput, name: str) -> Any:
    """A `ModelInput` of the SDK. Reads image files: not on the event loop where there are any (`holds_files`)."""
    chunks = [
        types.EncodedTextChunk(tokens=chunk.tokens.tolist())
        if isinstance(chunk, TokenChunk)
        else _sdk_image(types, chunk, name)
        for chunk in value.chunks
    ]
    return types.ModelInput(chunks=chunks)


def holds_files(value: ModelInput) -> bool:
    """Whether converting the input reads the disk."""
    return any(isinstance(chunk, ImageChunk) for chunk in value.chunks)


def _sdk_image(types: ModuleType | Any, image: ImageChunk, name: str) -> Any:
    source = image.source
    if isinstance(source, str) and "://" in source:
        suffix = Path(source.partition("?")[0]).suffix.lower().lstrip(".")
        kind = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg"}.get(suffix)
        if kind is None:
            raise RequestRejected(f"{name}: the image {source[:80]} is neither .png nor .jpeg, which the server reads")
        return types.ImageAssetPointerChunk(format=kind, location=source, expected_tokens=image.expected_tokens)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise RequestRejected(f"{name}: the image {source!r} cannot be read: {error}") from error
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise RequestRejected(f"{name}: an image is neither PNG nor JPEG, which is what the server reads")
    return types.ImageChunk(data=data, format=kind, expected_tokens=image.expected_tokens)


def sdk_datum(types: ModuleType | Any, index: int, datum: Datum, fields: Sequence[str]) -> Any:
    """A `Datum` of the SDK with what a loss reads and nothing else: servers refuse fields that they do not know."""
    inputs = {
        field: types.TensorData.from_numpy(
            np.array(datum.loss_inputs[field], np.int64 if field in _INTEGERS else np.float32)
        )
        for field in fields
    }
    return types.Datum(model_input=sdk_input(types, datum.model_input, f"datum {index}"), loss_fn_inputs=inputs)


def sdk_adam(types: ModuleType | Any, params: AdamParams) -> Any:
    """`AdamParams` of the SDK, every field given: its own defaults are others."""
    return types.AdamParams(
        learning_rate=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        grad_clip_norm=params.grad_clip_norm,
    )


def sdk_sampling(types: ModuleType | Any, params: SamplingParams, seed: int) -> Any:
    """`SamplingParams` of the SDK.

    An empty list of stops says that nothing ends a completion early; none at all would leave end-of-text tokens in force. Of stop strings and ids
    together, which a server takes no mixture of, the ids are sent, and `cut_at_stop` does the rest.
    """
    ids = [stop for stop in params.stop if isinstance(stop, int)]
    strings = [stop for stop in params.stop if isinstance(stop, str)]
    return types.SamplingParams(
        max_tokens=params.max_tokens,
        seed=derive_seed(seed) % _SEEDS,
        stop=ids or strings,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )


def cut_here(params: SamplingParams) -> bool:
    """Whether stops have to be looked for on this side too: strings and ids in one request."""
    return len({type(stop) for stop in params.stop}) > 1


def completion(sequence: Any, request: SampleRequest, version: int, tokenizer: Tokenizer | None) -> Completion:
    """A sampled sequence of the SDK. `tokenizer`: to cut it at stop strings, where that is to be done here."""
    tokens_T, logprobs_T = _sampled(sequence)
    reason: StopReason = "stop" if sequence.stop_reason == "stop" else "length"
    if tokenizer is not None:
        watch, tokens = StopWatch(request.params, tokenizer.decode), tokens_T.tolist()
        for end in range(1, len(tokens) + 1):
            if watch.reached(tokens[:end]):
                tokens_T, logprobs_T, reason = tokens_T[:end], logprobs_T[:end], "stop"
                break
    if len(tokens_T) > request.params.max_tokens:
        raise BackendError(f"the server sent {len(tokens_T)} tokens where max_tokens is {request.params.max_tokens}")
    return Completion(tokens_T, logprobs_T, reason, version)


def _sampled(sequence: Any) -> tuple[NDArray[np.int32], Logprobs]:
    tokens = getattr(sequence, "tokens_np", None)
    logprobs = getattr(sequence, "logprobs_np", None)
    tokens = sequence.tokens if tokens is None else tokens
    logprobs = sequence.logprobs if logprobs is None else logprobs
    if logprobs is None:
        raise BackendError("the server sent a completion without log-probs")
    tokens_T, logprobs_T = np.asarray(tokens, np.int32), np.asarray(logprobs, np.float32)
    if tokens_T.shape != logprobs_T.shape or tokens_T.ndim != 1:
        raise BackendError(f"the server sent {len(tokens_T)} tokens with {len(logprobs_T)} log-probs")
    if not len(tokens_T):
        raise BackendError("the server sent a completion without tokens")
    bad = np.flatnonzero(~np.isfinite(logprobs_T))
    if len(bad):
        raise BackendError(
            f"the server's log-prob of token {int(tokens_T[bad[0]])} at position {int(bad[0])} of a completion is "
            f"{logprobs_T[bad[0]]}: the model's weights may hold NaN"
        )
    return tokens_T, logprobs_T


def prompt_logprobs(values: Sequence[float | None] | None, sequence: ModelInput) -> Logprobs:
    """Log-probs of a scored sequence, shape (T,), NaN first. Servers send T values, the first None, or T − 1."""
    length = sequence.length
    if values is None:
        raise BackendError("the server sent no log-probs of the prompt")
    given_T = np.array([math.nan if value is None else value for value in values], np.float32)
    if len(given_T) == length - 1:
        given_T = np.concatenate((np.array([np.nan], np.float32), given_T))
    if len(given_T) != length:
        raise BackendError(f"the server sent {len(given_T)} log-probs for a sequence of {length} tokens")
    given_T[0] = np.nan
    at = 0
    for chunk in sequence.chunks:
        if isinstance(chunk, TokenChunk):
            inside_T = given_T[max(at, 1) : at + chunk.length]
            bad = np.flatnonzero(~np.isfinite(inside_T))
            if len(bad):
                position = max(at, 1) + int(bad[0])
                raise BackendError(
                    f"the server's log-prob at position {position} is {given_T[position]}: is the token there "
                    f"({int(chunk.tokens[position - at])}) or before it outside of the model's vocabulary?"
                )
        at += chunk.length
    return given_T


def target_logprobs(outputs: Sequence[Any], data: Sequence[Datum]) -> tuple[Logprobs, ...]:
    """Log-probs of the targets of each datum, shape (T,), out of a pass's outputs."""
    if len(outputs) != len(data):
        raise BackendError(f"the server sent outputs of {len(outputs)} datums for {len(data)}")
    found = []
    for index, (output, datum) in enumerate(zip(outputs, data, strict=True)):
        tensor = output.get("logprobs")
        if tensor is None:
            raise BackendError(f"the server sent no 'logprobs' of datum {index}, but {', '.join(sorted(output))}")
        logprobs_T = np.array(tensor.to_numpy(), np.float32).reshape(-1)
        if len(logprobs_T) != datum.model_input.length:
            raise BackendError(
                f"the server sent {len(logprobs_T)} log-probs of datum {index}, which has {datum.model_input.length} positions"
            )
        bad = np.flatnonzero(~np.isfinite(logprobs_T))
        if len(bad):
            target = int(datum.loss_inputs["target_tokens"][bad[0]])
            raise BackendError(
                f"the server's log-prob of datum {index} at position {int(bad[0])} is {logprobs_T[bad[0]]} (target token {target}): "
                "an id outside of the model's vocabulary, or weights that hold NaN"
            )
        found.append(logprobs_T)
    return tuple(found)
