"""The tinker backend without a server and without the SDK: an in-memory service, for tests of what stands on the backend.

    fake = FakeTinker(line="0.38")
    fake.service.plan("sample", Fault(error=RateLimitError("later")))
    async with fake.open() as backend: ...

It speaks either line of the SDK, keeps time on anyio's clock (an hour's wait takes milliseconds under `engine.runtime.simulate`), trains a table of
next-token logits with real gradients, and does what it is told to do wrong: errors, requests that are lost, answers that make no sense.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from engine.backends.tinker.backend import TinkerBackend
from engine.backends.tinker.checkpoints import CheckpointStore
from engine.backends.tinker.opening import connected, connected_store
from engine.backends.tinker.options import TinkerOptions
from engine.backends.tinker.sdk import Access, Sdk
from engine.backends.tinker.submissions import Inline, Runs
from engine.backends.tinker.testing import values
from engine.backends.tinker.testing.module import sdk_module
from engine.backends.tinker.testing.service import KEY, Fault, Run, Service, Stored
from engine.runtime.offload import inline

Line = Literal["0.25", "0.38"]
MODEL = "fake/table"


def _as_text(tokens: Sequence[int]) -> str:
    return "".join(chr(65 + token) for token in tokens)


class FakeTinker:
    """A service, and an SDK that speaks to it."""

    def __init__(
        self,
        line: Line = "0.38",
        *,
        vocab: int = 128,
        max_context: int | None = 200,
        seed: int = 0,
        latency: Callable[[str], float] | None = None,
        shared_slot: bool = False,
        decode: Callable[[Sequence[int]], str] = _as_text,
    ) -> None:
        """`latency`: seconds by kind of request. `shared_slot`: sampling from a snapshot replaces the weights in training, as on SkyRL's JAX backend."""
        self.service = Service(
            model=MODEL,
            vocab=vocab,
            max_context=max_context,
            seed=seed,
            latency=latency,
            shared_slot=shared_slot,
            decode=decode,
        )
        self.module: Any = sdk_module(self.service, newer=line == "0.38")
        self._vocab = vocab

    @asynccontextmanager
    async def open(
        self, *, model: str = MODEL, api_key: str = KEY, runs: Runs | None = None, **options: Any
    ) -> AsyncIterator[TinkerBackend]:
        """A backend on the service, which serves as long as it is open. `runs` None: in the calling thread, so that no thread is needed. `options`: of `TinkerOptions`."""
        settings = TinkerOptions(**{"lora_rank": 8, "vocab_size": self._vocab, **options})
        token = inline.set(runs is None or inline.get())
        try:
            async with (
                self.service.serving(),
                connected(
                    Sdk(self.module),
                    Access("https://fake", api_key),
                    self.service.traits(),
                    settings,
                    model,
                    runs=runs or Inline(),
                    look_up=self.service.look_up,
                ) as backend,
            ):
                yield backend
        finally:
            inline.reset(token)

    @asynccontextmanager
    async def open_store(self, *, api_key: str = KEY) -> AsyncIterator[CheckpointStore]:
        """Its checkpoints."""
        token = inline.set(True)
        try:
            async with (
                self.service.serving(),
                connected_store(
                    Sdk(self.module), Access("https://fake", api_key), Inline(), self.service.look_up
                ) as store,
            ):
                yield store
        finally:
            inline.reset(token)


__all__ = ["KEY", "MODEL", "FakeTinker", "Fault", "Line", "Run", "Service", "Stored", "values"]
