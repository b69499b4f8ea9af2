"""The two ports between the engine and a model: training and sampling.

A training backend is a queue: every call below that returns a `Pending` is *submitted* when it returns, calls are executed in
submission order, and waiting is separate. So the trainer can submit the work of a whole step before it waits for any of it,
and a state saved after step k holds exactly k optimizer steps whatever is submitted next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import attrs

from engine.backends.values import (
    AdamParams,
    Completion,
    Datum,
    ForwardBackwardResult,
    Logprobs,
    Loss,
    ModelInput,
    SampleRequest,
)

if TYPE_CHECKING:
    from engine.storage.discarded import Remote
    from engine.training.custom import CustomLoss

T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """A submitted piece of work. Dropping it does not undo the submission."""

    async def result(self) -> T_co:
        """Waits for the work and returns its result, or raises what it failed with. May be awaited again."""
        ...


class Snapshot(Protocol):
    """Weights a sampler can serve, frozen at a policy version. Alive until released."""

    @property
    def version(self) -> int:
        """Optimizer steps behind these weights."""
        ...


@attrs.frozen
class Capabilities:
    """What a backend can do, for clear errors before a run starts rather than in the middle of one."""

    name: str
    losses: frozenset[str]
    max_context: int | None = None
    """Longest sequence the model takes, prompt and completion together; None: unknown."""
    request_deadline: float | None = None
    """Seconds after which a sampling request that has not been answered should be given up and tried again. A server can lose a request; a
    backend in this process cannot (None), and a slow machine is no failure."""
    time_to_live: bool = False
    """A saved state can be given a time after which the backend drops it."""
    images: bool = False
    """Prompts and datums may hold images. Where not, they are rejected."""
    clips_gradients: bool = True
    """`AdamParams.grad_clip_norm` has its effect. Where not, the first step that asks for it warns with `IgnoredSetting`."""


@runtime_checkable
class TrainingBackend(Protocol):
    """Weights, their gradients and their optimizer."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def version(self) -> int:
        """Optimizer steps *submitted* so far, those before a restored state included."""
        ...

    def forward(self, data: Sequence[Datum], loss: Loss) -> Pending[ForwardBackwardResult]:
        """Submits a pass without gradients: the loss and the logprobs of the target tokens."""
        ...

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Pending[ForwardBackwardResult]:
        """Submits a pass whose gradients (of the loss summed over tokens) are added to those of earlier passes.

        A datum that does not fit the loss raises `RequestRejected` here, naming the datum's index and the field.
        """
        ...

    def optim_step(self, params: AdamParams) -> Pending[dict[str, float]]:
        """Submits one AdamW step on the accumulated gradients, and clears them. Gives metrics such as `grad_norm`.

        A backend that cannot clip (`Capabilities.clips_gradients`) warns with `IgnoredSetting` when it is first asked to.
        """
        ...

    def snapshot(self) -> Pending[Snapshot]:
        """Submits the freezing of the current weights for sampling."""
        ...

    def restart(self) -> Pending[None]:
        """Submits the start of a new run from the present weights: version 0, no accumulated gradients, an optimizer that remembers nothing."""
        ...

    def save_state(self, directory: Path, *, time_to_live: float | None = None) -> Pending[None]:
        """Submits the writing of weights and optimizer into the existing, empty `directory`.

        `time_to_live`: seconds after which the backend may drop them, and `load_state` then raises `UnusableState`; only where `Capabilities.time_to_live`
        says that it can (others raise RequestRejected). None: they stay until the directory is deleted.
        """
        ...

    def load_state(self, directory: Path) -> Pending[None]:
        """Submits the restoring of what `save_state` wrote, the version included. Raises `UnusableState` where it cannot be used."""
        ...


@runtime_checkable
class CustomLossBackend(Protocol):
    """What a training backend may offer beside its port: a custom loss in one submission. Without it a custom loss costs two (`engine.training.custom`)."""

    def forward_backward_custom(self, data: Sequence[Datum], loss: CustomLoss) -> Pending[ForwardBackwardResult]:
        """Submits a pass with a loss of the caller's own, a function of datums and logprobs that also gives the gradient; it is called off the event loop.

        The result has the custom loss's value and metrics. A value or gradient that is not finite fails it with ValueError naming the datum, and
        the optimizer step after it.
        """
        ...


@runtime_checkable
class SamplingBackend(Protocol):
    """Completions and log-probabilities from frozen weights."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        """`request.num_samples` completions. Cancelling the call frees what it holds.

        Raises `TransientError` where trying again may help, `RequestRejected` where it cannot.
        """
        ...

    async def compute_logprobs(self, snapshot: Snapshot, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN."""
        ...

    def release(self, snapshot: Snapshot) -> None:
        """Gives up a snapshot: nothing will be asked of it again. Releasing twice is an error."""
        ...

    def save_snapshot(self, snapshot: Snapshot, directory: Path) -> Pending[None]:
        """Submits the writing of a snapshot into the existing, empty `directory`, so that a resumed run can serve an older version."""
        ...

    def load_snapshot(self, directory: Path) -> Pending[Snapshot]:
        """Submits the restoring of what `save_snapshot` wrote."""
        ...


@attrs.frozen
class Discarded:
    """What became of weights that a server was asked to delete, by their paths."""

    deleted: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    """The server has no such thing: deleted before, expired, or never its own."""
    kept: Mapping[str, str] = attrs.field(factory=dict)
    """Not deleted, each with the reason."""


@runtime_checkable
class RemoteBackend(Protocol):
    """What a backend offers beside its ports when saved states and snapshots lie on a server, and the directories they are saved into hold only where.

    Whoever deletes such a directory has the server delete the weights too. Asked in this order, nothing goes that is still wanted: first `in_use`, then what
    the remaining directories hold (`elsewhere`), then `discard`.
    """

    def elsewhere(self, directory: Path) -> Sequence[Remote]:
        """What was saved into a directory, or anywhere below it. Blocks: it reads files."""
        ...

    def in_use(self, path: str) -> bool:
        """Whether a live snapshot is of these weights, or they are being saved into a directory at this moment."""
        ...

    async def discard(self, paths: Sequence[str]) -> Discarded:
        """Has the server delete weights for good. Cancelling the call leaves open which of them went; asking again is safe."""
        ...


class Backend(TrainingBackend, SamplingBackend, Protocol):
    """Both ports on one model, as RL needs them."""


class Tokenizer(Protocol):
    """Text to token ids and back; Hugging Face `tokenizers.Tokenizer` wrapped, or anything like it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: a special token's name inside `text` stays text."""
        ...

    def decode(self, tokens: Sequence[int] | Any) -> str:
        """Text of token ids, special tokens by their names."""
        ...

    def special_token(self, name: str) -> int:
        """Id of a special token, e.g. `<|im_end|>`. Raises KeyError when the vocabulary has none of that name."""
        ...

    @property
    def vocab_size(self) -> int: ...


@runtime_checkable
class StreamingPolicy(Protocol):
    """A policy that can tell of tokens while it samples. Not every one can; who asks must be ready to wait for the whole."""

    async def sample_streaming(
        self, request: SampleRequest, on_token: Callable[[int, int, float], None]
    ) -> Sequence[Completion]:
        """Like `sample`. `on_token(index, token, logprob)` is called in this event loop for every token, in the order of each sample, before the call returns."""
        ...


@runtime_checkable
class StreamingBackend(Protocol):
    """A sampling backend whose snapshots can be streamed from; optional."""

    async def sample_streaming(
        self, snapshot: Snapshot, request: SampleRequest, on_token: Callable[[int, int, float], None]
    ) -> Sequence[Completion]:
        """See `StreamingPolicy.sample_streaming`."""
        ...
