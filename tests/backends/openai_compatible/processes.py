"""Servers of other people's making, as processes of their own for as long as a test module needs them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def running(
    command: Callable[[int], Sequence[str]],
    log: Path,
    *,
    ready: str = "/health",
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Starts `command(port)`, waits until `ready` answers without an error of the server's, and gives the address up to the version."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    variables = {**os.environ, **(environment or {})}
    with log.open("w") as out, subprocess.Popen(command(port), stdout=out, stderr=out, env=variables) as server:
        try:
            for _ in range(300):
                try:
                    if httpx.get(f"{url}{ready}", timeout=5).status_code < 500:
                        break
                except httpx.TransportError:
                    assert server.poll() is None, log.read_text()
                time.sleep(0.3)  # another process starts
            yield f"{url}/v1"
        finally:
            server.terminate()
