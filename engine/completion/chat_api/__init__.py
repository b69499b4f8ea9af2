"""Completers on servers with OpenAI's chat API: vLLM, SGLang, llama.cpp, a hosted one, our own `recipes.serve`.

async with chat_api.open("gpt-4o-mini", api_key=key) as judge: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from engine.completion.chat_api.completer import ChatCompleter, Dialect

__all__ = ["open"]


@asynccontextmanager
async def open(  # noqa: A001 - `chat_api.open(...)` is how it is meant to be read
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: Dialect | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **settings: Any,
) -> AsyncIterator[ChatCompleter]:
    """A completer on a server's chat API. Nothing is sent before it is asked.

    - `base_url`, `api_key`: None: OPENAI_BASE_URL and OPENAI_API_KEY.
    - `transport`: what carries the requests; None: the network.
    - `settings`: further fields of `ServerSettings`: concurrency, attempts, backoff, backoff_limit, deadline.
    """
    from engine.backends.openai_compatible.connection import connect, server_settings
    from engine.completion.chat_api.completer import ChatCompleter

    async with connect(server_settings(base_url, api_key, **settings), transport=transport) as connection:
        yield ChatCompleter(connection, model, dialect)
