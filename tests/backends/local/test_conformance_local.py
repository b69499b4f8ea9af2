"""The local backend passes the conformance suite: full weights and adapters, the written-out forward pass and the module's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.backends import conformance, local

pytest.importorskip("torch")
pytestmark = [pytest.mark.local, pytest.mark.anyio]


def subject(model: Path, forward: str, **options: Any) -> conformance.Subject:
    @asynccontextmanager
    async def open_backend() -> AsyncIterator[Any]:
        async with local.open(model, threads=1, max_batch=6, **options) as backend:
            assert backend.forward_path.split()[0] == forward
            yield backend
            assert backend.statistics()["rows"] == 0

    return conformance.Subject(open=open_backend, tokens=range(40, 90))


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_full_weights(check: conformance.Check, tiny: Path) -> None:
    await check(subject(tiny, "llama"))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_adapters(check: conformance.Check, tiny: Path) -> None:
    await check(subject(tiny, "llama", lora_rank=4))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("family", "rank"), [("gpt2", None), ("gemma3_text", 4)])
async def test_other_families(
    check: conformance.Check, family: str, rank: int | None, other_family: Callable[[str], Path]
) -> None:
    await check(subject(other_family(family), "generic", lora_rank=rank))
