"""Values and errors of the SDK's shape, as far as this backend uses them. As strict as the SDK's: what it refuses is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from numpy.typing import NDArray

_DTYPES = {"f": "float32", "i": "int64"}


# ---- errors --------------------------------------------------------------------------------------------------------------------------


class TinkerError(Exception):
    """Of the SDK."""


class APIError(TinkerError):
    """Of a request."""

    def __init__(self, message: str = "", body: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.body = body


class APIConnectionError(APIError):
    """No connection."""


class APITimeoutError(APIConnectionError):
    """No answer."""


class APIStatusError(APIError):
    """A status of 400 and above."""

    status_code = 400


class BadRequestError(APIStatusError):
    """400."""


class AuthenticationError(APIStatusError):
    """401."""

    status_code = 401


class NotFoundError(APIStatusError):
    """404."""

    status_code = 404


class ConflictError(APIStatusError):
    """409."""

    status_code = 409


class UnprocessableEntityError(APIStatusError):
    """422."""

    status_code = 422


class RateLimitError(APIStatusError):
    """429."""

    status_code = 429


class InternalServerError(APIStatusError):
    """500."""

    status_code = 500


class RequestFailedError(TinkerError):
    """A request that was taken and then failed. `category`: user, server or unknown."""

    def __init__(self, message: str, category: str = "unknown") -> None:
        super().__init__(message)
        self.message = message
        self.category = category


# ---- what is sent --------------------------------------------------------------------------------------------------------------------


def _integers(_: object, attribute: attrs.Attribute[Any], value: Sequence[Any]) -> None:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise TypeError(f"{attribute.name} must be a list of plain integers")


@attrs.frozen(kw_only=True)
class EncodedTextChunk:
    """A run of token ids."""

    tokens: list[int] = attrs.field(validator=_integers)

    @property
    def length(self) -> int:
        """Positions."""
        return len(self.tokens)


@attrs.frozen(kw_only=True)
class ImageChunk:
    """An encoded image."""

    data: bytes
    format: str = attrs.field(validator=attrs.validators.in_(("png", "jpeg")))
    expected_tokens: int | None = None

    @property
    def length(self) -> int:
        """Positions."""
        return self.expected_tokens or 0


@attrs.frozen(kw_only=True)
class ImageAssetPointerChunk:
    """An image by address."""

    location: str
    format: str = attrs.field(validator=attrs.validators.in_(("png", "jpeg")))
    expected_tokens: int | None = None

    @property
    def length(self) -> int:
        """Positions."""
        return self.expected_tokens or 0


@attrs.frozen(kw_only=True)
class ModelInput:
    """Chunks."""

    chunks: list[Any]

    @property
    def length(self) -> int:
        """Positions."""
        return sum(chunk.length for chunk in self.chunks)

    @property
    def ids(self) -> list[int]:
        """A token for every position; -1 for those of an image."""
        found: list[int] = []
        for chunk in self.chunks:
            found += chunk.tokens if isinstance(chunk, EncodedTextChunk) else [-1] * chunk.length
        return found


class TensorData:
    """An array."""

    def __init__(self, array: NDArray[Any]) -> None:
        if array.dtype.kind not in _DTYPES:
            raise ValueError(f"Unsupported numpy dtype: {array.dtype}")
        self.dtype = _DTYPES[array.dtype.kind]
        self._array = array.astype(self.dtype)

    @classmethod
    def from_numpy(cls, array: NDArray[Any]) -> TensorData:
        """Of an array of floats or integers."""
        return cls(array)

    def to_numpy(self) -> NDArray[Any]:
        """The array."""
        return self._array


@attrs.frozen(kw_only=True)
class Datum:
    """A training sequence."""

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, TensorData]


@attrs.frozen(kw_only=True)
class AdamParams:
    """An optimizer step."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@attrs.frozen(kw_only=True)
class SamplingParams:
    """How to sample. `stop` None: end-of-text ends a completion; an empty list: nothing does."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: Sequence[str] | Sequence[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


# ---- what is answered ----------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ForwardBackwardOutput:
    """Of a pass."""

    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


@attrs.frozen(kw_only=True)
class OptimStepResponse:
    """Of a step."""

    metrics: dict[str, float] | None


@attrs.frozen(kw_only=True)
class SaveResponse:
    """Of saving."""

    path: str


@attrs.frozen(kw_only=True)
class SampledSequence:
    """A completion."""

    tokens: list[int]
    logprobs: list[float] | None
    stop_reason: str


@attrs.frozen(kw_only=True)
class SampleResponse:
    """Of sampling."""

    sequences: list[SampledSequence]
    prompt_logprobs: list[float | None] | None = None


@attrs.frozen(kw_only=True)
class SupportedModel:
    """A model that is served."""

    model_name: str
    max_context_length: int | None = None


@attrs.frozen(kw_only=True)
class Capabilities:
    """Of the server."""

    supported_models: list[SupportedModel]


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AdamParams",
    "AuthenticationError",
    "BadRequestError",
    "Capabilities",
    "ConflictError",
    "Datum",
    "EncodedTextChunk",
    "ForwardBackwardOutput",
    "ImageAssetPointerChunk",
    "ImageChunk",
    "InternalServerError",
    "ModelInput",
    "NotFoundError",
    "OptimStepResponse",
    "RateLimitError",
    "RequestFailedError",
    "SampleResponse",
    "SampledSequence",
    "SamplingParams",
    "SaveResponse",
    "SupportedModel",
    "TensorData",
    "TinkerError",
    "UnprocessableEntityError",
]
