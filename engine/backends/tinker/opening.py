"""Opening the backend and closing it: the SDK's connection, what the server is, the run on it, and the end of all that."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from engine.backends.errors import BackendError, TransientError
from engine.backends.tinker import servers
from engine.backends.tinker.backend import TinkerBackend
from engine.backends.tinker.checkpoints import CheckpointStore
from engine.backends.tinker.options import TinkerOptions
from engine.backends.tinker.patience import LookUp, Patience
from engine.backends.tinker.sdk import Access, Sdk, load_sdk
from engine.backends.tinker.servers import Traits
from engine.backends.tinker.session import Session
from engine.backends.tinker.statuses import StatusCounter
from engine.backends.tinker.submissions import Operation, Runs, Submissions, worker_thread
from engine.runtime.offload import inline, offload

T = TypeVar("T")

_CONNECTING = 120.0
"""Most seconds for the SDK's first requests."""
_FAREWELL = 5.0
"""Most seconds for the server to be told that the session ends."""
_INFLIGHT = (
    "sampling='inflight' is refused: such weights change in the middle of a generation, so a completion has no one version, and no bound on "
    "staleness could hold. Use snapshots (the default)"
)


@asynccontextmanager
async def opened(
    model: str | Path,
    *,
    lora_rank: int,
    base_url: str | None,
    api_key: str | None,
    tokenizer: str | Path | None,
    sampling: str,
    user_metadata: Mapping[str, str] | None,
    project_id: str | None,
    options: Mapping[str, Any],
) -> AsyncIterator[TinkerBackend]:
    """See `engine.backends.tinker.open`."""
    if sampling != "snapshot":
        raise BackendError(_INFLIGHT if sampling == "inflight" else f"sampling is 'snapshot', not {sampling!r}")
    try:
        settings = TinkerOptions(lora_rank=lora_rank, **options)
    except TypeError as error:
        known = ", ".join(sorted(field.name for field in attrs.fields(TinkerOptions)))
        raise BackendError(f"tinker.open: {error}; its options: {known}") from None
    access = Access(base_url, api_key)
    sdk = Sdk(await anyio.to_thread.run_sync(load_sdk))
    traits = await servers.recognise(access)
    async with connected(
        sdk,
        access,
        traits,
        settings,
        str(model),
        runs=worker_thread(),
        look_up=lambda: servers.look_up(access),
        tokenizer=tokenizer,
        user_metadata=user_metadata,
        project_id=project_id,
    ) as backend:
        yield backend


@asynccontextmanager
async def connected(
    sdk: Sdk,
    access: Access,
    traits: Traits,
    options: TinkerOptions,
    model: str,
    *,
    runs: Runs,
    look_up: LookUp | None,
    tokenizer: str | Path | None = None,
    user_metadata: Mapping[str, str] | None = None,
    project_id: str | None = None,
) -> AsyncIterator[TinkerBackend]:
    """A backend on an SDK that is at hand. `runs`: what runs its steps. `look_up`: how the server is looked for while one waits; None: not at all."""
    told = {name: value for name in ("own_snapshots", "images") if (value := getattr(options, name)) is not None}
    traits = attrs.evolve(traits, **told)
    if options.layers and not traits.chooses_layers:
        raise BackendError(
            f"{access.server} cannot be told which layers get adapters: leave {', '.join(options.layers)} out"
        )
    submissions = Submissions(runs)
    service = None
    status = "errored"
    gone = options.unreachable_after
    patience = Patience(access.server, look_up, look_every=min(15.0, gone / 3), give_up_after=gone)
    try:
        with StatusCounter(access.url) as statuses:
            connect = functools.partial(sdk.connect, access, user_metadata=user_metadata, project_id=project_id)
            service, rest = await _within(_CONNECTING, connect, access)
            session = Session(sdk, service, rest, access, traits, options, model, submissions, patience, statuses)
            backend = await _begun(session, tokenizer or model)
            try:
                yield backend
                status = "success"
            finally:
                with anyio.move_on_after(_FAREWELL, shield=True):
                    await _let_go(backend)
    finally:
        with anyio.CancelScope(shield=True):
            await offload(_end, submissions, sdk, service, status)


async def _within(seconds: float, connect: Callable[[], T], access: Access) -> T:
    """Runs the SDK's first, blocking requests in a thread. At the deadline the thread is left behind; the SDK ends it within minutes."""
    if inline.get():
        await anyio.lowlevel.checkpoint()
        return connect()
    with anyio.move_on_after(seconds):
        return await anyio.to_thread.run_sync(connect, abandon_on_cancel=True)
    raise TransientError(f"{access.server} did not open a session within {seconds:g} s")


async def _begun(session: Session, tokenizer: str | Path) -> TinkerBackend:
    """The run on the server."""
    options = session.options
    model, context = await _served(session)
    session = attrs.evolve(session, model=model)
    max_context = options.max_context or context or _in_config(model, "max_position_embeddings")
    vocab_size = options.vocab_size or _in_config(session.model, "vocab_size")
    client = await session.aside(_created(session), f"a run of {session.model} could not be begun").result()
    return TinkerBackend(session, client, tokenizer=tokenizer, max_context=max_context, vocab_size=vocab_size)


def _created(session: Session) -> Operation[Any]:
    options = session.options
    return (
        yield session.sdk.client(
            session.service,
            "create_lora_training_client",
            base_model=session.model,
            rank=options.lora_rank,
            seed=options.seed,
            **options.layers,
        )
    )


async def _served(session: Session) -> tuple[str, int | None]:
    """The model's name and context as the server says. Raises BackendError when it does not serve the model: not every server refuses one that it does not have."""

    def asked() -> Operation[Any]:
        return (yield session.sdk.server_models(session.service, session.rest))

    capabilities = await session.aside(asked(), f"{session.access.server} did not say what it serves").result()
    models = {found.model_name: found for found in capabilities.supported_models if found.model_name}
    if not models:
        return session.model, None
    name = next((name for name in models if name == session.model or _same_directory(name, session.model)), None)
    if name is None:
        names = sorted(models)
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise BackendError(f"{session.access.server} does not serve {session.model!r}; it serves {shown}")
    return name, getattr(models[name], "max_context_length", None)


def _same_directory(left: str, right: str) -> bool:
    return Path(left).is_absolute() and Path(left) == Path(right).absolute()


def _in_config(model: str, key: str) -> int | None:
    """A number out of the config.json of a model that is a directory here."""
    path = Path(model) / "config.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, int) else None


async def _let_go(backend: TinkerBackend) -> None:
    """Has the server delete what nobody will ask for again."""
    try:
        await backend.let_go()
    except BackendError:  # a server that is gone deletes nothing; what is there expires
        return


def _end(submissions: Submissions, sdk: Sdk, service: Any, status: str) -> None:
    submissions.close()
    if service is not None:
        sdk.close(service, status, _FAREWELL)


@asynccontextmanager
async def opened_store(base_url: str | None, api_key: str | None) -> AsyncIterator[CheckpointStore]:
    """See `engine.backends.tinker.open_store`."""
    access = Access(base_url, api_key)
    sdk = Sdk(await anyio.to_thread.run_sync(load_sdk))
    if (why := await servers.look_up(access)) is not None:
        raise BackendError(f"{access.server} does not answer: {why}")
    async with connected_store(sdk, access, worker_thread(), lambda: servers.look_up(access)) as store:
        yield store


@asynccontextmanager
async def connected_store(
    sdk: Sdk, access: Access, runs: Runs, look_up: LookUp | None
) -> AsyncIterator[CheckpointStore]:
    """A store on an SDK that is at hand."""
    submissions = Submissions(runs)
    try:
        rest = await _within(_CONNECTING, functools.partial(sdk.connect_store, access), access)
        yield CheckpointStore(sdk, rest, submissions, Patience(access.server, look_up), access.server)
    finally:
        with anyio.CancelScope(shield=True):
            await offload(submissions.close)
