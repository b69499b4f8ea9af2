"""What a recipe takes from outside, so that it can be embedded, and tested with something else in its place.

await rl_loop.run(config)                                      # as the command line does
await rl_loop.run(config, Ports(open_model=my_open_model))     # on a model of one's own
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from engine.data import LoadRows, load_rows
from recipes.models import MakeTiny, ModelConfig, OpenedModel, open_completer, open_model
from recipes.retrieval import RetrievalConfig, open_embedder, open_store

if TYPE_CHECKING:
    from engine.completion import Completer
    from engine.retrieval import Embedder, VectorStore
    from envs.code.opening import SandboxConfig
    from envs.sandbox import Sandbox


class OpenModel(Protocol):
    """See `recipes.models.open_model`."""

    def __call__(
        self, config: ModelConfig, directory: Path, *, seed: int = 0, make_tiny: MakeTiny | None = None
    ) -> AbstractAsyncContextManager[OpenedModel]: ...


class OpenCompleter(Protocol):
    """See `recipes.models.open_completer`."""

    def __call__(
        self, config: ModelConfig, directory: Path, *, seed: int = 0, make_tiny: MakeTiny | None = None
    ) -> AbstractAsyncContextManager[Completer]: ...


class OpenSandbox(Protocol):
    """See `envs.code.opening.make_sandbox`."""

    def __call__(self, config: SandboxConfig, /) -> Sandbox: ...


def open_sandbox(config: SandboxConfig, /) -> Sandbox:
    """The sandbox that the configuration names, to be opened with `async with`."""
    from envs.code.opening import make_sandbox

    return make_sandbox(config)


class OpenEmbedder(Protocol):
    """See `recipes.retrieval.open_embedder`."""

    def __call__(self, config: RetrievalConfig) -> AbstractAsyncContextManager[Embedder]: ...


class OpenStore(Protocol):
    """See `recipes.retrieval.open_store`."""

    def __call__(self, config: RetrievalConfig) -> AbstractAsyncContextManager[VectorStore]: ...


@attrs.frozen
class Ports:
    """The outside of a recipe."""

    open_model: OpenModel = open_model
    """Opens the model that is trained, or a teacher that scores."""
    open_completer: OpenCompleter = open_completer
    """Opens a model that answers: a judge, an opponent, a teacher that writes."""
    load_rows: LoadRows = load_rows
    """Loads data sets: from the Hugging Face hub, and from local files."""
    open_sandbox: OpenSandbox = open_sandbox
    """Runs what models write: on this machine, or on a server."""
    open_embedder: OpenEmbedder = open_embedder
    """Opens what makes vectors of texts, for search."""
    open_store: OpenStore = open_store
    """Opens what keeps those vectors and finds the nearest."""


DEFAULT = Ports()
"""This machine, and what the configuration names."""
