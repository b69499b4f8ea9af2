"""The backend `openai_compatible`: sampling, scoring and chatting on a server with OpenAI's API (vLLM, SGLang, llama.cpp, a hosted one, our own `recipes.serve`).

    async with openai_compatible.open("Qwen/Qwen3-8B", base_url="http://127.0.0.1:8000/v1") as backend: ...       # tokens in, tokens and logprobs out
    async with openai_compatible.open_completer("gpt-4o-mini", api_key=key) as judge: ...                          # messages in, a message out

Where no address and no key are given, OPENAI_BASE_URL and OPENAI_API_KEY say them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from engine.backends.openai_compatible.backend import OpenAICompatibleBackend
    from engine.backends.openai_compatible.completer import ChatCompleter, Dialect
    from engine.backends.openai_compatible.connection import ServerSettings

__all__ = ["open", "open_completer"]

DEFAULT_URL = "https://api.openai.com/v1"


@asynccontextmanager
async def open(  # noqa: A001 - `openai_compatible.open(...)` is how it is meant to be read
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    max_context: int | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **settings: Any,
) -> AsyncIterator[OpenAICompatibleBackend]:
    """A sampling backend on a server's completions API.

    - `max_context`: longest sequence the model takes; None: as the server's `models` says (vLLM's `max_model_len`), or unknown.
    - `transport`: what carries the requests; None: the network.
    - `settings`: further fields of `ServerSettings`: concurrency, attempts, backoff, backoff_limit, deadline.

    Raises BackendError in one line where there is no such server, or it serves other models.
    """
    from engine.backends.openai_compatible.backend import OpenAICompatibleBackend
    from engine.backends.openai_compatible.connection import connect

    async with connect(_settings(base_url, api_key, settings), transport=transport) as connection:
        listed = await connection.get("models")
        known = {entry["id"]: entry for entry in listed.get("data") or () if isinstance(entry, dict) and "id" in entry}
        if known and model not in known:
            from engine.backends.errors import BackendError

            raise BackendError(
                f"{connection.settings.base_url}: serves no model '{model}'; it serves {', '.join(sorted(known))}"
            )
        said = known.get(model, {}).get("max_model_len")
        yield OpenAICompatibleBackend(connection, model, max_context=max_context or (int(said) if said else None))


@asynccontextmanager
async def open_completer(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: Dialect | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **settings: Any,
) -> AsyncIterator[ChatCompleter]:
    """A completer on a server's chat API. Arguments as for `open`; nothing is sent before it is asked."""
    from engine.backends.openai_compatible.completer import ChatCompleter
    from engine.backends.openai_compatible.connection import connect

    async with connect(_settings(base_url, api_key, settings), transport=transport) as connection:
        yield ChatCompleter(connection, model, dialect)


def _settings(base_url: str | None, api_key: str | None, others: dict[str, Any]) -> ServerSettings:
    from engine.backends.openai_compatible.connection import ServerSettings

    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    return ServerSettings(url, api_key or os.environ.get("OPENAI_API_KEY") or None, **others)
