"""Servers of the Tinker API, and where they differ from the hosted one.

SkyRL's (0.4.0, the newest seen) says at its root which it is. Found by running it on its JAX backend:

- **A snapshot that is sampled from takes the place of the weights in training.** Both live in one adapter slot; sampling from an older snapshot than the newest
  silently trains on from *its* weights. So snapshots are given a model of their own there (`own_snapshots`): the state is saved, loaded into a second
  model, and sampled from that. The slots a server has (`max_lora_adapters`) bound how many snapshots can be alive.
- The gradient is the mean over datums of each datum's mean over its tokens, where the API says sum: Σ(weight·loss) / Σ(weight). With weights that sum to nothing or less
  the mean has no meaning, so losses that are computed here are sent as importance sampling at a ratio of 1 (`signed_weights`), where every token weighs one.
- A model that is unloaded leaves its accumulated gradients to the next one in its place (`forgets_gradients`), so they are stepped away before, at a rate of 0.
- It reads text. `grad_clip_norm`, time-to-live, cancellation and the choice of layers (attention and MLP get adapters, the output does not) are not known to it;
  an older one's sampling goes on although nobody waits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import attrs

from engine.backends.errors import BackendError
from engine.backends.tinker.sdk import Access

_SKYRL = "Tinker API Mock"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_KNOCK = 5.0
"""Seconds to wait for a connection."""


def _nothing(_: str) -> None:
    """A server that frees models by itself."""


@attrs.frozen
class Traits:
    """What a server does in its own way. The defaults are the hosted service's."""

    own_snapshots: bool = False
    """Sampling from a snapshot disturbs the model it is of, so each gets one of its own."""
    signed_weights: bool = True
    """cross_entropy takes weights of any sign."""
    clips_gradients: bool = True
    """A step's gradient is clipped to the norm that was asked for."""
    chooses_layers: bool = True
    """Which layers get adapters can be said."""
    forgets_gradients: bool = True
    """A model that is freed leaves nothing to the next one."""
    images: bool = True
    """Inputs may hold images; whether the model takes any is the server's to say."""
    expires: bool = True
    """Checkpoints have a time-to-live."""
    unload: Callable[[str], None] = _nothing
    """Frees a model by its id. Blocks."""


HOSTED = Traits()
SKYRL = Traits(
    own_snapshots=True,
    signed_weights=False,
    clips_gradients=False,
    chooses_layers=False,
    forgets_gradients=False,
    images=False,
    expires=False,
)
"""SkyRL's server; how it frees a model depends on its address."""


async def recognise(access: Access) -> Traits:
    """The traits of the server at an address. Raises BackendError when nothing answers there."""
    if access.url is None:
        return HOSTED
    why = await look_up(access)
    if why is not None:
        raise BackendError(f"{access.server} does not answer: {why}")
    return await anyio.to_thread.run_sync(_recognise, access, abandon_on_cancel=True)


def _recognise(access: Access) -> Traits:
    import httpx

    try:
        root = httpx.get(f"{access.url}/", timeout=_KNOCK)
        name = root.json().get("name") if root.is_success else None
    except (httpx.HTTPError, ValueError, AttributeError):
        return HOSTED
    if name != _SKYRL:
        return HOSTED
    return skyrl(access)


def skyrl(access: Access) -> Traits:
    """SkyRL's server."""

    def unload(model_id: str) -> None:
        import httpx

        key = access.api_key or os.environ.get("TINKER_API_KEY", "")
        answer = httpx.post(
            f"{access.url}/api/v1/unload_model", json={"model_id": model_id}, headers={"X-API-Key": key}, timeout=_KNOCK
        )
        answer.raise_for_status()

    return attrs.evolve(SKYRL, unload=unload)


async def look_up(access: Access) -> str | None:
    """Whether the server's port takes connections: None, or why not. Behind a proxy nothing is known, and it counts as reachable."""
    if access.url is None or any(os.environ.get(name) for name in _PROXIES):
        return None
    address = urlsplit(access.url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with anyio.fail_after(_KNOCK):
            stream = await anyio.connect_tcp(address.hostname or "", port)
            await stream.aclose()
    except TimeoutError:
        return f"no connection within {_KNOCK:g} s"
    except (OSError, socket.gaierror) as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return str(getattr(error, "strerror", None) or error)
