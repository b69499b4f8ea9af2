"""compute_logprobs for many sequences at once: the same numbers, fewer passes, errors that strike nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends import local
from engine.backends.errors import BackendError
from engine.backends.values import ModelInput

torch = pytest.importorskip("torch")

from engine.backends.local.llama import BoundLlama  # noqa: E402

pytestmark = pytest.mark.local


def sequences() -> list[ModelInput]:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 200, 30)
    drawn = [rng.integers(0, 200, length) for length in (1, 2, 3, 17, 40, 90)]
    return [ModelInput.from_tokens(tokens) for tokens in (*drawn, *(np.append(shared, last) for last in range(5)))]


async def score_all(backend: Any, snapshot: Any, inputs: Sequence[ModelInput]) -> list[Any]:
    found: list[Any] = [None] * len(inputs)

    async def one(index: int) -> None:
        found[index] = await backend.compute_logprobs(snapshot, inputs[index])

    async with anyio.create_task_group() as tasks:
        for index in range(len(inputs)):
            tasks.start_soon(one, index)
    return found


@pytest.mark.anyio
@pytest.mark.parametrize("family", [None, "gemma3_text"])
async def test_together_they_score_as_alone(
    tiny: Path, other_family: Callable[[str], Path], family: str | None
) -> None:
    async with local.open(
        tiny if family is None else other_family(family), threads=1, microbatch_tokens=128
    ) as backend:
        snapshot = await backend.snapshot().result()
        inputs = sequences()
        alone = [await backend.compute_logprobs(snapshot, each) for each in inputs]
        together = await score_all(backend, snapshot, inputs)
        for one, other, each in zip(alone, together, inputs, strict=True):
            assert one.shape == other.shape == (each.length,)
            assert np.isnan(other[0])
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.anyio
async def test_those_asked_for_at_once_go_through_the_network_together(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    original = BoundLlama.target_logprobs

    def counted(self: Any, read: Any, pack: Any, *rest: Any) -> Any:
        passes.append(len(pack.members))
        return original(self, read, pack, *rest)

    monkeypatch.setattr(BoundLlama, "target_logprobs", counted)
    async with local.open(tiny, threads=1, microbatch_tokens=4096) as backend:
        old, new = await backend.snapshot().result(), await backend.snapshot().result()
        inputs = sequences()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(score_all, backend, old, inputs)
            tasks.start_soon(score_all, backend, new, inputs)
        # One of each eleven has a single token, which nothing predicts. A burst may be cut in two by its own beginning.
        assert sum(passes) == 20
        assert len(passes) <= 6


@pytest.mark.anyio
async def test_an_error_belongs_to_the_pass_it_struck(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BoundLlama.target_logprobs

    def breaking(self: Any, read: Any, pack: Any, *rest: Any) -> Any:
        if any(len(read[member]) == 89 for member in pack.members):
            raise RuntimeError("out of memory")
        return original(self, read, pack, *rest)

    monkeypatch.setattr(BoundLlama, "target_logprobs", breaking)
    async with local.open(tiny, threads=1, microbatch_tokens=64) as backend:
        snapshot = await backend.snapshot().result()
        inputs = sequences()
        failed = []

        async def one(index: int) -> None:
            try:
                await backend.compute_logprobs(snapshot, inputs[index])
            except RuntimeError:
                failed.append(index)

        async with anyio.create_task_group() as tasks:
            for index in range(len(inputs)):
                tasks.start_soon(one, index)
        assert failed == [5]  # the one of 90 tokens, alone in its pass
        assert (await backend.compute_logprobs(snapshot, inputs[4])).shape == (40,)


@pytest.mark.anyio
async def test_cancelled_and_closed(tiny: Path) -> None:
    inputs = sequences()
    async with local.open(tiny, threads=1) as backend:
        snapshot = await backend.snapshot().result()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await score_all(backend, snapshot, inputs)
        assert (await backend.compute_logprobs(snapshot, inputs[4])).shape == (40,)
    with pytest.raises(BackendError, match=r"not live|closed"):
        await backend.compute_logprobs(snapshot, inputs[4])
