"""Requests that may be tried again: how often, after which pauses, and what is said when all of them failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import attrs

from engine.backends.errors import BackendError, TransientError
from engine.runtime.seeds import derive_seed

T = TypeVar("T")

_at_least_one: Any = attrs.validators.optional(attrs.validators.ge(1))
_positive: Any = attrs.validators.optional(attrs.validators.gt(0))


class SamplingFailed(BackendError):
    """A request that failed as often as it may."""


@attrs.frozen
class SamplerSettings:
    """How requests are sent."""

    slots: int | None = attrs.field(default=None, validator=_at_least_one)
    """Most samples asked for at once; None leaves it to the backend. A request for n samples takes n slots (at most all of them)."""
    attempts: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """How often a request is tried where the failure may pass."""
    backoff: float = attrs.field(default=0.5, validator=attrs.validators.ge(0))
    """Seconds before the second attempt; doubled for each further one, with up to half as much again at random."""
    backoff_limit: float = attrs.field(default=30.0, validator=attrs.validators.ge(0))
    """Longest pause between attempts, in seconds."""
    deadline: float | None = attrs.field(default=None, validator=_positive)
    """Most seconds of one attempt; running out counts as a failure that may pass. None: what the backend asks for (`Capabilities.request_deadline`)."""


async def ask(
    request: Callable[[], Awaitable[T]], settings: SamplerSettings, deadline: float | None, seed: int, what: str
) -> T:
    """The answer to a request that is tried as often as the settings say. Raises SamplingFailed, naming `what` it was, after the last attempt."""
    try:
        return await _once(request, deadline)
    except TransientError as error:
        return await ask_again(request, error, settings, deadline, seed, what=what)


async def ask_again(
    request: Callable[[], Awaitable[T]],
    error: TransientError,
    settings: SamplerSettings,
    deadline: float | None,
    seed: int,
    on_retry: Callable[[], None] = lambda: None,
    what: str = "a sampling request",
) -> T:
    """Attempts after the first, which failed with `error`, each after a longer pause; the pauses' random part follows from `seed`."""
    for attempt in range(1, settings.attempts):
        pause = min(settings.backoff * 2 ** (attempt - 1), settings.backoff_limit)
        jitter = derive_seed(seed, attempt) / 2**64  # in [0, 0.5)
        await anyio.sleep(pause * (1 + jitter))
        on_retry()
        try:
            return await _once(request, deadline)
        except TransientError as again:
            error = again
    raise SamplingFailed(f"{what} failed {settings.attempts} times, the last time with: {error}") from error


async def _once(request: Callable[[], Awaitable[T]], deadline: float | None) -> T:
    with anyio.move_on_after(deadline):
        return await request()
    raise TransientError(f"no answer within the deadline of {deadline:g} s")
