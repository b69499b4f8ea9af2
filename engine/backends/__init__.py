"""Ports to models (protocols, values, errors) and adapters behind them.

Adapters are modules of their own, imported only when used: `engine.backends.simulated`, `engine.backends.local`.
"""

from engine.backends.errors import BackendError, IgnoredSetting, RequestRejected, TransientError, UnusableState
from engine.backends.ports import Backend, Capabilities, Pending, SamplingBackend, Snapshot, Tokenizer, TrainingBackend
from engine.backends.values import (
    AdamParams,
    Chunk,
    Completion,
    Datum,
    ForwardBackwardResult,
    ImageChunk,
    Logprobs,
    Loss,
    ModelInput,
    SampleRequest,
    SamplingParams,
    StopReason,
    TokenChunk,
    Tokens,
)

__all__ = [
    "AdamParams",
    "Backend",
    "BackendError",
    "Capabilities",
    "Chunk",
    "Completion",
    "Datum",
    "ForwardBackwardResult",
    "IgnoredSetting",
    "ImageChunk",
    "Logprobs",
    "Loss",
    "ModelInput",
    "Pending",
    "RequestRejected",
    "SampleRequest",
    "SamplingBackend",
    "SamplingParams",
    "Snapshot",
    "StopReason",
    "TokenChunk",
    "Tokenizer",
    "Tokens",
    "TrainingBackend",
    "TransientError",
    "UnusableState",
]
