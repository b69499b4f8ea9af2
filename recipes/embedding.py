"""Recipes inside other programs: any of them, by name, in the event loop that is there.

    from recipes import run

    result = await run("rl_loop", {"steps": 10})                                              # as the command line would, without its output
    result = await run("rl_loop", {"steps": 10}, manifest="test")                             # nothing real: a simulated model
    result = await run("chat_sl", {"data": "mine"}, ports={"load_rows": in_memory_rows({"mine": rows})})

A *manifest* says what stands behind a recipe's ports and which backend its configuration starts with; `ports` replace single ones. Nothing is printed
unless asked for, signals stay the host's, and cancelling the call cancels the run; a `StopHandle` ends it after the step under way, with a checkpoint.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from recipes import cli
from recipes.interrupts import StopHandle, host
from recipes.models import MakeTiny, ModelConfig, OpenedModel
from recipes.ports import DEFAULT, OpenModel, Ports

if TYPE_CHECKING:
    from engine.completion import Completer
    from engine.data import LoadRows, Row, Rows
    from engine.rendering import Message
    from engine.retrieval import Embedder, VectorStore
    from recipes.retrieval import RetrievalConfig

__all__ = ["MANIFESTS", "Manifest", "StopHandle", "in_memory_rows", "models_at", "run"]


@attrs.frozen
class Manifest:
    """What stands behind a recipe."""

    ports: Ports = DEFAULT
    config: Mapping[str, Any] = attrs.field(factory=dict)
    """Values that a recipe's configuration starts with, where it has such fields."""


async def run(
    recipe: str,
    config: object | Mapping[str, Any] | None = None,
    *,
    manifest: str | Manifest = "local",
    ports: Mapping[str, Any] | None = None,
    stop: StopHandle | None = None,
    quiet: bool = True,
) -> Any:
    """Runs a recipe and gives what it gives, usually a `RunResult`.

    Args:
        recipe: its name behind `python -m recipes.`, such as "rl_loop" or "distillation.on_policy".
        config: an instance of its `Config`, taken as it is; or values by field, nested as in config.json; None: the defaults.
        manifest: "local", "tinker", "test", or one of your own.
        ports: things in the place of single ports, by the names of `Ports`.
        stop: call it to end the run after the step under way. With it, or without, cancel the call to end it at once.
        quiet: print nothing.

    Raises ValueError for a recipe, manifest, port or field that does not exist, and what the recipe raises.
    """
    module = _recipe(recipe)
    chosen = manifest if isinstance(manifest, Manifest) else _manifest(manifest)
    given = _configuration(module.Config, config, chosen)
    outside = _with_ports(chosen.ports, ports or {})
    with _hosted(stop or StopHandle(), quiet=quiet):
        outcome = module.run(given, outside)
        return await outcome if inspect.isawaitable(outcome) else outcome


def _recipe(name: str) -> Any:
    try:
        module = import_module(f"recipes.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or not f"recipes.{name}".startswith(error.name):
            raise
        raise ValueError(f"there is no recipe '{name}'") from None
    parameters = list(inspect.signature(module.run).parameters) if hasattr(module, "run") else []
    if not hasattr(module, "Config") or parameters[1:2] != ["ports"]:
        raise ValueError(
            f"recipes.{name} is no recipe that can be embedded: it has no `Config` and `run(config, ports)`"
        )
    return module


def _manifest(name: str) -> Manifest:
    if name not in MANIFESTS:
        raise ValueError(f"there is no manifest '{name}'; there are {', '.join(MANIFESTS)}")
    return MANIFESTS[name]


def _configuration(kind: type, config: object, manifest: Manifest) -> object:
    if isinstance(config, kind):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise ValueError(
            f"the configuration is a {kind.__qualname__} of {kind.__module__}, or values by field, not {config!r}"
        )
    fields = {field.name for field in attrs.fields(kind)}
    values = {name: value for name, value in manifest.config.items() if name in fields}
    return cli.structure({**cli.unstructure(kind()), **values, **(config or {})}, kind)


def _with_ports(ports: Ports, others: Mapping[str, Any]) -> Ports:
    known = [field.name for field in attrs.fields(Ports)]
    for name in others:
        if name not in known:
            raise ValueError(f"there is no port '{name}'; there are {', '.join(known)}")
    return attrs.evolve(ports, **others)


@contextmanager
def _hosted(stop: StopHandle, *, quiet: bool) -> Iterator[None]:
    from engine.telemetry import display

    hosting, showing = host.set(stop), display.silent.set(quiet)
    try:
        yield
    finally:
        host.reset(hosting)
        display.silent.reset(showing)


# ---- the manifest "test": nothing real


@asynccontextmanager
async def simulated_model(
    config: ModelConfig,
    directory: Path,  # noqa: ARG001  (the port's)
    *,
    seed: int = 0,
    make_tiny: MakeTiny | None = None,  # noqa: ARG001
) -> AsyncIterator[OpenedModel]:
    """A simulated backend: tokens drawn from seeds, no weights, no time. Its renderer can write any text."""
    from engine.backends.simulated import SimulatedBackend
    from engine.rendering import get_renderer
    from engine.rendering.registry import control_tokens
    from recipes.tiny import make_tokenizer

    name = config.renderer or "role_colon"
    tokenizer = make_tokenizer(controls=control_tokens(name))
    yield OpenedModel(SimulatedBackend(seed=seed), get_renderer(name, tokenizer))


@asynccontextmanager
async def echoing_completer(
    config: ModelConfig,  # noqa: ARG001  (the port's)
    directory: Path,  # noqa: ARG001
    *,
    seed: int = 0,  # noqa: ARG001
    make_tiny: MakeTiny | None = None,  # noqa: ARG001
) -> AsyncIterator[Completer]:
    """A completer that says what it was last told."""
    from engine.completion import ScriptedCompleter

    def echo(messages: Sequence[Message]) -> str:
        return messages[-1].text

    yield ScriptedCompleter(echo)


@asynccontextmanager
async def hashing_embedder(config: RetrievalConfig) -> AsyncIterator[Embedder]:
    """An embedder without a model, whatever the configuration names."""
    from engine.retrieval import HashingEmbedder

    yield HashingEmbedder(config.dimensions)


@asynccontextmanager
async def store_in_memory(config: RetrievalConfig) -> AsyncIterator[VectorStore]:  # noqa: ARG001  (the port's)
    """A vector store in memory, whatever the configuration names."""
    from engine.retrieval import InMemoryVectorStore

    yield InMemoryVectorStore()


def models_at(places: Mapping[str, Path], open_model: OpenModel = DEFAULT.open_model) -> OpenModel:
    """A model hub of one's own: an `open_model` that looks for these names at these places first."""

    def opening(
        config: ModelConfig, directory: Path, *, seed: int = 0, make_tiny: MakeTiny | None = None
    ) -> AbstractAsyncContextManager[OpenedModel]:
        place = places.get(config.model)
        if place is not None:
            config = attrs.evolve(config, model=str(place))
        return open_model(config, directory, seed=seed, make_tiny=make_tiny)

    return opening


def in_memory_rows(sets: Mapping[str, Sequence[Row]]) -> LoadRows:
    """A `load_rows` that knows these data sets, by the name a configuration gives, and no others."""

    def load(
        source: str | Path,
        *,
        split: str | None = None,
        subset: str | None = None,  # noqa: ARG001  (the port's)
        columns: Sequence[str] = (),
        limit: int | None = None,
        revision: str | None = None,  # noqa: ARG001
        schema: str | None = None,
    ) -> Rows:
        from engine.data import DataError, rows_of

        name = str(source)
        found = sets.get(f"{name}:{split}", sets.get(name))
        if found is None:
            raise DataError(f"there is no data set '{name}' here; there is {', '.join(sets) or 'none'}")
        rows = attrs.evolve(rows_of(found, name, schema=schema), required=tuple(columns))
        return rows if limit is None else rows.take(limit)

    return load


MANIFESTS: Mapping[str, Manifest] = {
    "local": Manifest(),
    "tinker": Manifest(config={"backend": "tinker"}),
    "test": Manifest(
        Ports(
            open_model=simulated_model,
            open_completer=echoing_completer,
            load_rows=in_memory_rows({}),
            open_embedder=hashing_embedder,
            open_store=store_in_memory,
        ),
        {"backend": "simulated"},
    ),
}
"""By name: this machine; a server of the Tinker API (TINKER_BASE_URL, TINKER_API_KEY); nothing real."""
