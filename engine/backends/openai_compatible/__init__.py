"""The backend `openai_compatible`: sampling and scoring on a server with OpenAI's API (vLLM, SGLang, llama.cpp, our own `recipes.serve`).

    async with openai_compatible.open("Qwen/Qwen3-8B", base_url="http://127.0.0.1:8000/v1") as backend: ...       # tokens in, tokens and logprobs out

Where no address and no key are given, OPENAI_BASE_URL and OPENAI_API_KEY say them. Its chat API is asked through `engine.completion.chat_api`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from engine.backends.openai_compatible.backend import OpenAICompatibleBackend

__all__ = ["open"]


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

    - `max_context`: longest sequence the model takes; None: as the server's `models` says (vLLM's `max_model_len`, llama.cpp's `n_ctx`), or unknown.
    - `transport`: what carries the requests; None: the network.
    - `settings`: further fields of `ServerSettings`: concurrency, attempts, backoff, backoff_limit, deadline.

    Raises BackendError in one line where there is no such server, or it serves other models.
    """
    from engine.backends.openai_compatible.backend import OpenAICompatibleBackend
    from engine.backends.openai_compatible.connection import connect, server_settings
    from engine.backends.openai_compatible.servers import context_of, recognised

    async with connect(server_settings(base_url, api_key, **settings), transport=transport) as connection:
        listed = await connection.get("models")
        known = {entry["id"]: entry for entry in listed.get("data") or () if isinstance(entry, dict) and "id" in entry}
        if known and model not in known:
            from engine.backends.errors import BackendError

            raise BackendError(
                f"{connection.settings.base_url}: serves no model '{model}'; it serves {', '.join(sorted(known))}"
            )
        entry = known.get(model, {})
        yield OpenAICompatibleBackend(
            connection, model, max_context=max_context or context_of(entry), server=recognised(entry)
        )
