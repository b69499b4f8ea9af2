"""The tinker backend passes the conformance suite on the in-memory service, whichever line of the SDK it speaks, and where a server is as SkyRL's is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from engine.backends import conformance
from engine.backends.conformance.training import clipping_is_done_or_said
from engine.backends.tinker import training
from engine.backends.tinker.backend import TinkerBackend
from engine.backends.tinker.testing import FakeTinker, Line, Service

pytestmark = pytest.mark.anyio


def subject(line: Line, *, shared_slot: bool = False, **options: object) -> conformance.Subject:
    @asynccontextmanager
    async def open_backend() -> AsyncIterator[TinkerBackend]:
        fake = FakeTinker(line, shared_slot=shared_slot)
        fake.service.checkpoints.update(kept)
        async with fake.open(**options) as backend:
            yield backend
        kept.update(fake.service.checkpoints)
        assert fake.service.sessions, "the session was not ended"

    kept: dict[str, object] = {}
    return conformance.Subject(open=open_backend, tokens=range(40, 90), tolerance=1e-5, learning_rate=0.1)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("line", ["0.25", "0.38"])
async def test_conformance(check: conformance.Check, line: Line) -> None:
    await check(subject(line))


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance_where_sampling_disturbs_training(check: conformance.Check) -> None:
    await check(subject("0.38", shared_slot=True))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_without_snapshots_of_their_own_such_a_server_fails() -> None:
    """What the traits of SkyRL's server are for: the suite notices a run that trains on from the weights of a snapshot that was sampled from."""
    report = await conformance.examine(subject("0.38", shared_slot=True, own_snapshots=False))
    assert "sampling_leaves_training_alone" in report.failed


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("wrong", ["claims to clip", "ignores it in silence"])
async def test_a_norm_that_is_ignored_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Service.traits
    if wrong == "claims to clip":
        monkeypatch.setattr(Service, "traits", lambda service: attrs.evolve(honest(service), clips_gradients=True))
        said = "moved the weights"
    else:
        monkeypatch.setattr(training.warnings, "warn", lambda *_, **__: None)
        said = "it warned 0 times"
    with pytest.raises(conformance.NotConforming, match=said):
        await clipping_is_done_or_said(subject("0.38", shared_slot=True))
