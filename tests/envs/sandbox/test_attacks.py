"""Every attack ends within its limits, gets nowhere, and leaves nothing behind: in namespaces, and in what can be had without them."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from envs.sandbox import Limits, RunRequest
from envs.sandbox.local import LocalSandbox
from tests.envs.sandbox.attacks import ATTACKS
from tests.envs.sandbox.leftovers import here, namespaces, none_beside

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="the local sandbox needs Linux")]
LIMITS = Limits(cpu=0.4, memory=128, processes=12, open_files=64, disk=8, output=100_000)
SPARE = 4.0
"""Seconds beyond the wall clock, for a machine that is busy with other things."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop, one sandbox, for all attacks: what the one before has left would show in the next."""
    return "asyncio"


@pytest.fixture(scope="module", params=["namespaces", "restricted"])
async def sandbox(request: Any) -> AsyncIterator[LocalSandbox]:
    if request.param == "namespaces" and not namespaces():
        pytest.skip("this machine has no namespaces for us")
    async with LocalSandbox(means=request.param, require={"filesystem", "network"}) as opened:
        yield opened


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack(name: str, sandbox: LocalSandbox, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    if attack.only_namespaces and "processes" not in sandbox.isolation().isolated:
        pytest.skip("processes are not claimed to be isolated here")
    limits = attrs.evolve(LIMITS, wall_clock=attack.wall_clock)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        told = f"OUTSIDE = {str(outside)!r}\nPORT = {listener.getsockname()[1]}\n"
        before = here()
        began = time.monotonic()
        outcome = await sandbox.run(RunRequest(told + attack.code, limits=limits))
        took = time.monotonic() - began
        with pytest.raises(BlockingIOError):  # nobody has called
            listener.accept()
    assert outcome.ending in attack.endings, f"{outcome.reason}: {outcome.stderr[-300:]}"
    if outcome.ending == "exited" or attack.succeeded:
        assert outcome.stdout == attack.succeeded, f"it got somewhere: {outcome.stdout[:500]!r}"
    assert took < attack.wall_clock + SPARE
    assert len(outcome.stdout) <= LIMITS.output
    assert len(outcome.stderr) <= LIMITS.output
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    await none_beside(before)


async def test_serves_on_afterwards(sandbox: LocalSandbox) -> None:
    """Nobody who was attacked has been hurt."""
    outcomes = []

    async def run(number: int) -> None:
        outcomes.append(await sandbox.run(RunRequest(f"print({number})", limits=LIMITS)))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(run, number)
    assert sorted(outcome.stdout for outcome in outcomes) == [f"{number}\n" for number in range(8)]
