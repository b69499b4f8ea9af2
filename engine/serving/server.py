"""A server for the endpoint, in the event loop that is there: asyncio or trio, beside a run that trains what is served.

async with serving(endpoint, port=8000) as address: ...
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio
import trio

from engine.backends.errors import BackendError
from engine.runtime.ungrouped import ungrouped

if TYPE_CHECKING:
    from engine.serving.endpoint import Endpoint

LOOPBACK = "127.0.0.1"
GRACE = 2.0
"""Seconds that answers under way get when the server is asked to stop."""


def require_server() -> None:
    """Raises BackendError, naming the pip install that helps, where the packages of the server are missing."""
    missing = [name for name in ("starlette", "hypercorn") if find_spec(name) is None]
    if missing:
        raise BackendError(f"serving needs {', '.join(missing)}: pip install 'callsheet[serve]'")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, port: int, *, has_key: bool) -> None:
    """Raises what `serving` would raise for an address, before anything costs time: ValueError, OSError."""
    if not has_key and not is_loopback(host):
        raise ValueError(f"host {host}: other machines can reach it, so the endpoint needs a key")
    _bind(host, port).close()


@asynccontextmanager
async def serving(endpoint: Endpoint, *, host: str = LOOPBACK, port: int = 0) -> AsyncIterator[str]:
    """Serves while the block runs; gives the address up to the version, `http://127.0.0.1:8000/v1`.

    `port` 0: any that is free. Raises OSError where the port is taken, ValueError for an endpoint without a key on an address that others can reach.
    """
    if not endpoint.has_key and not is_loopback(host):
        raise ValueError(f"host {host}: other machines can reach it, so the endpoint needs a key")
    from hypercorn.config import Config

    bound = _bind(host, port)
    config = Config()
    config.bind = [f"fd://{os.dup(bound.fileno())}"]  # a number of its own, which it closes
    config.graceful_timeout = GRACE + 1  # by then the endpoint has ended them, and said so
    config.accesslog = None
    config.errorlog = logging.getLogger("callsheet.serving")
    shutdown, ended = anyio.Event(), anyio.Event()
    serve: Any = _serve_of_this_loop()
    name = f"[{host}]" if ":" in host else host
    with bound:
        address = f"http://{name}:{bound.getsockname()[1]}/v1"
        with ungrouped():
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    try:
                        await serve(endpoint.application(), config, shutdown_trigger=shutdown.wait, mode="asgi")
                    finally:
                        ended.set()

                tasks.start_soon(run)
                try:
                    yield address
                finally:
                    shutdown.set()
                    # However the block ended: a server that is asked to stop closes its connections, one that is cancelled drops them.
                    with anyio.CancelScope(deadline=anyio.current_time() + GRACE + 2, shield=True):
                        with anyio.move_on_after(GRACE):
                            await ended.wait()
                        endpoint.stop()
                        await ended.wait()
                tasks.cancel_scope.cancel()


def _serve_of_this_loop() -> Any:
    if trio.lowlevel.in_trio_run():
        from hypercorn.trio import serve
    else:
        from hypercorn.asyncio import serve  # type: ignore[assignment]
    return serve


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket: from here on a client that connects waits, and is not refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(512)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen at {host} port {port}: {error.strerror}") from error
    return bound
