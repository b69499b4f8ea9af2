"""An embedder behind HTTP: any server of OpenAI's `POST /v1/embeddings` (vLLM, SGLang, text-embeddings-inference, llama.cpp, hosted).

    async with open_http_embedder("http://127.0.0.1:8000/v1", "intfloat/e5-base-v2", query_prefix="query: ") as embedder:
        embeddings_N_D = await embedder.embed(["where is Paris?"], purpose="query")

One pooled client; a call's texts go in batches, some at a time; what may pass (no connection, a timeout, 408, 409, 429, 5xx) is tried again with
exponential backoff and full jitter, or when the server says so, until the call's deadline.

Dimension suffixes: `N` texts, `D` dimensions.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import numpy as np

from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.retrieval.ports import Embeddings, Purpose, unit_rows

if TYPE_CHECKING:
    import httpx

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_positive: Any = attrs.validators.gt(0)


@attrs.frozen(kw_only=True)
class HttpSettings:
    """How a server is asked."""

    query_prefix: str = ""
    """Put before each text that is searched for."""
    document_prefix: str = ""
    """Put before each text that is to be found."""
    batch_size: int = attrs.field(default=64, validator=_positive)
    """Texts in one request."""
    concurrency: int = attrs.field(default=8, validator=_positive)
    """Requests under way at once, of all calls together."""
    deadline: float = attrs.field(default=120.0, validator=_positive)
    """Seconds a call may take in all, retries and waiting for a free request included."""
    request_timeout: float = attrs.field(default=30.0, validator=_positive)
    """Seconds one request may take before it is tried again."""
    first_backoff: float = attrs.field(default=0.5, validator=_positive)
    """Upper end of the first pause; each further one's is twice the last."""
    longest_backoff: float = attrs.field(default=20.0, validator=_positive)
    seed: int = 0
    """Seed of the pauses between attempts."""


@asynccontextmanager
async def open_http_embedder(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    settings: HttpSettings | None = None,
    headers: Mapping[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[HttpEmbedder]:
    """`base_url` as OpenAI's clients take it, usually ending in /v1. `transport`: httpx's, for tests."""
    import httpx

    settings = settings or HttpSettings()
    authorization = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(
        base_url=base_url.rstrip("/"),
        headers={**authorization, **(headers or {})},
        timeout=settings.request_timeout,
        limits=httpx.Limits(max_connections=settings.concurrency),
        transport=transport,
    ) as client:
        yield HttpEmbedder(client, model, settings)


class HttpEmbedder:
    """See `open_http_embedder`. An `Embedder`; what the server gives is made unit vectors."""

    def __init__(self, client: httpx.AsyncClient, model: str, settings: HttpSettings) -> None:
        self._client = client
        self._model = model
        self._settings = settings
        self._slots = anyio.Semaphore(settings.concurrency)
        self._rng = random.Random(settings.seed)
        self._dimensions: int | None = None
        self.retries = 0
        """Requests that were tried again, so far."""
        self.prompt_tokens = 0
        """Tokens that the server says it has read, so far."""

    @property
    def dimensions(self) -> int | None:
        """Known from the first answer on."""
        return self._dimensions

    @property
    def unit_norm(self) -> bool:
        """Always."""
        return True

    async def embed(self, texts: Sequence[str], *, purpose: Purpose = "document") -> Embeddings:
        """See `Embedder`. Raises TransientError at the deadline, RequestRejected where trying again cannot help."""
        settings = self._settings
        prefix = settings.query_prefix if purpose == "query" else settings.document_prefix
        results: dict[int, Embeddings] = {}
        failures: list[str] = []

        async def one(first: int) -> None:
            batch = [prefix + text for text in texts[first : first + settings.batch_size]]
            results[first] = await self._embed_batch(batch, first, failures)

        with anyio.move_on_after(settings.deadline) as scope:
            try:
                async with anyio.create_task_group() as group:
                    for first in range(0, len(texts), settings.batch_size):
                        group.start_soon(one, first)
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if scope.cancelled_caught:
            why = f"; the last of {len(failures)} failures: {failures[-1]}" if failures else ""
            raise TransientError(
                f"{self._client.base_url}: {len(texts)} texts were not embedded within {settings.deadline:g} s{why}"
            )
        if not results:
            return np.empty((0, self._dimensions or 0), np.float32)
        return np.concatenate([results[first] for first in sorted(results)])

    async def _embed_batch(self, batch: list[str], first: int, failures: list[str]) -> Embeddings:
        import httpx

        for attempt in itertools.count():
            wait: float | None = None
            async with self._slots:
                try:
                    # anyio's clock, so that a virtual one counts too; httpx's own timeouts are the network's.
                    with anyio.fail_after(self._settings.request_timeout):
                        response = await self._client.post(
                            "/embeddings", json={"model": self._model, "input": batch, "encoding_format": "float"}
                        )
                    if response.status_code not in RETRIED:
                        return self._read(response, batch, first)
                    failures.append(f"{response.status_code} {_reason(response)}")
                    wait = _retry_after(response)
                except (httpx.TransportError, TimeoutError) as error:
                    failures.append(f"{type(error).__name__} {error}".strip())
            self.retries += 1
            ceiling = min(self._settings.longest_backoff, self._settings.first_backoff * 2**attempt)
            await anyio.sleep(self._rng.uniform(0, ceiling) if wait is None else wait + self._rng.uniform(0, 0.1))
        raise AssertionError("unreachable: the deadline ends it")

    def _read(self, response: httpx.Response, batch: list[str], first: int) -> Embeddings:
        where = f"{response.request.method} {response.request.url}"
        if response.status_code >= 400:
            raise RequestRejected(
                f"{where} (texts {first} to {first + len(batch) - 1}, model {self._model!r}): {response.status_code} {_reason(response)}"
            )
        try:
            answer = response.json()
            rows = sorted(answer["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(batch))):
                raise ValueError(f"{len(rows)} embeddings for {len(batch)} texts")
            embeddings_N_D = np.array([row["embedding"] for row in rows], np.float32)
            if embeddings_N_D.ndim != 2 or not embeddings_N_D.shape[1]:
                raise ValueError(f"embeddings of shape {embeddings_N_D.shape}")
            if self._dimensions not in (None, embeddings_N_D.shape[1]):
                raise ValueError(f"embeddings of {embeddings_N_D.shape[1]} dimensions, {self._dimensions} before")
            embeddings_N_D = unit_rows(embeddings_N_D, lambda row: f"text {first + row}")
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{where}: the answer cannot be used: {type(error).__name__}: {error}") from error
        self._dimensions = embeddings_N_D.shape[1]
        usage = answer.get("usage")
        if isinstance(usage, Mapping) and isinstance(usage.get("prompt_tokens"), int):
            self.prompt_tokens += usage["prompt_tokens"]
        return embeddings_N_D


def _reason(response: httpx.Response) -> str:
    """What the server says, in a line."""
    try:
        answer: Any = response.json()
        error = answer.get("error", answer)
        text = str(error.get("message", error) if isinstance(error, Mapping) else error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:300] or response.reason_phrase


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, where the server names them; a date is left to our own backoff."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 3600 else None
