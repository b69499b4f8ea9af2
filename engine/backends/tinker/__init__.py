"""The `tinker` backend: training and sampling on the hosted Tinker service, or on any server of that API, through the official SDK.

    async with tinker.open("Qwen/Qwen3-8B", lora_rank=32) as backend: ...                        # TINKER_API_KEY
    async with tinker.open("Qwen/Qwen3-0.6B", base_url="http://127.0.0.1:8000") as backend: ...  # a server of your own

Importing this package loads no SDK; `open` does, in a thread. The SDK sends telemetry unless TINKER_TELEMETRY=0 is set.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.backends.tinker.states import SavedState, saved_in

if TYPE_CHECKING:
    from engine.backends.tinker.backend import TinkerBackend
    from engine.backends.tinker.checkpoints import CheckpointStore

__all__ = ["SavedState", "open", "open_store", "saved_in"]


@asynccontextmanager
async def open(  # noqa: A001 - `tinker.open(...)` is how it is meant to be read
    model: str | Path,
    *,
    lora_rank: int = 32,
    base_url: str | None = None,
    api_key: str | None = None,
    tokenizer: str | Path | None = None,
    sampling: Literal["snapshot", "inflight"] = "snapshot",
    user_metadata: Mapping[str, str] | None = None,
    project_id: str | None = None,
    **options: Any,
) -> AsyncIterator[TinkerBackend]:
    """A backend for a model that the server knows by this name.

    - `lora_rank`: of the adapters that are trained.
    - `base_url`, `api_key`: None: TINKER_BASE_URL, else the hosted service; TINKER_API_KEY. The key is never shown or logged.
    - `tokenizer`: name or directory of the model's tokenizer; None: the model's own. Needed only where stop strings and stop ids are mixed in a request.
    - `sampling`: "snapshot". "inflight" weights change in the middle of a generation, so there is no version that a completion is of, and no bound on
      staleness that could hold: it is refused.
    - `user_metadata`, `project_id`: of the session, as the SDK takes them.
    - `options`: fields of `engine.backends.tinker.options.TinkerOptions`: deadlines, time-to-live of snapshots, retries, names.

    Raises BackendError, in one line that says what to do, where the SDK is missing, the server does not answer, the key is refused, or the model is not served.
    """
    from engine.backends.tinker.opening import opened

    async with opened(
        model,
        lora_rank=lora_rank,
        base_url=base_url,
        api_key=api_key,
        tokenizer=tokenizer,
        sampling=sampling,
        user_metadata=user_metadata,
        project_id=project_id,
        options=options,
    ) as backend:
        yield backend


@asynccontextmanager
async def open_store(*, base_url: str | None = None, api_key: str | None = None) -> AsyncIterator[CheckpointStore]:
    """The checkpoints that lie on the server, to be listed, given a time-to-live, deleted. Arguments as for `open`."""
    from engine.backends.tinker.opening import opened_store

    async with opened_store(base_url, api_key) as store:
        yield store
