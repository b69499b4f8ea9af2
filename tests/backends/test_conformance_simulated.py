"""The simulated backend passes the conformance suite, with and without time passing; and the suite notices backends that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import attrs
import numpy as np
import pytest

from engine.backends import conformance
from engine.backends.simulated import LogNormal, SamplerModel, SimulatedBackend, TrainerModel

pytestmark = pytest.mark.anyio

NO_GRADIENTS = dict.fromkeys(
    ("training_learns", "clipping_is_done_or_said"),
    "weights are a digest of the training history: nothing is learnt, and there is no gradient to clip",
)


def opening(make: Callable[[], SimulatedBackend]) -> Callable[[], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def open_backend() -> AsyncIterator[SimulatedBackend]:
        backend = make()
        yield backend
        assert backend.requests_in_flight == 0

    return open_backend


def subject(make: Callable[[], SimulatedBackend]) -> conformance.Subject:
    return conformance.Subject(open=opening(make), tokens=range(40, 90), tolerance=1e-6, gaps=NO_GRADIENTS)


def instant() -> SimulatedBackend:
    return SimulatedBackend(SamplerModel(policy_dependent=True), max_context=200)


def slow() -> SimulatedBackend:
    sampler = SamplerModel(seconds=LogNormal(0.002, 1.0, 0.01), sec_per_token=0.0002, policy_dependent=True)
    trainer = TrainerModel(per_call=0.001, per_token=1e-6, optim_step=0.001, snapshot=0.001, save=0.001, load=0.001)
    return SimulatedBackend(sampler, trainer, slots=3, record=True, max_context=200)


@pytest.mark.parametrize("make", [instant, slow])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check, make: Callable[[], SimulatedBackend]) -> None:
    under_test = subject(make)
    if reason := conformance.gap(check, under_test):
        pytest.skip(reason)
    await check(under_test)


class Mutant(SimulatedBackend):
    def __init__(self) -> None:
        super().__init__(SamplerModel(policy_dependent=True), max_context=200)


class IgnoresMaxTokens(Mutant):
    async def sample(self, snapshot: Any, request: Any) -> Any:
        params = attrs.evolve(request.params, max_tokens=request.params.max_tokens + 1)
        return await super().sample(snapshot, attrs.evolve(request, params=params))


class SeedsByOrder(Mutant):
    asked = 0

    async def sample(self, snapshot: Any, request: Any) -> Any:
        self.asked += 1
        return await super().sample(snapshot, attrs.evolve(request, seed=request.seed + self.asked))


class EqualSamples(Mutant):
    async def sample(self, snapshot: Any, request: Any) -> Any:
        one = await super().sample(snapshot, attrs.evolve(request, num_samples=1))
        return [*one] * request.num_samples


class DropsTheStop(Mutant):
    async def sample(self, snapshot: Any, request: Any) -> Any:
        completions = await super().sample(snapshot, request)
        if not request.params.stop:
            return completions
        return [attrs.evolve(c, tokens=c.tokens[:-1], logprobs=c.logprobs[:-1]) for c in completions]


class WarmLogprobs(Mutant):
    async def sample(self, snapshot: Any, request: Any) -> Any:
        completions = await super().sample(snapshot, request)
        scale = np.float32(request.params.temperature or 1.0)
        return [attrs.evolve(c, logprobs=c.logprobs / scale) for c in completions]


class LivingSnapshots(Mutant):
    def _served(self, snapshot: Any) -> Any:
        super()._served(snapshot)
        return attrs.evolve(snapshot, tokens=self._tokens)


class ReleasesTwice(Mutant):
    def release(self, snapshot: Any) -> None:
        self._live.discard(snapshot)


class LastBatchOnly(Mutant):
    def forward_backward(self, data: Any, loss: Any) -> Any:
        self._gradient = 0
        return super().forward_backward(data, loss)


class ForwardTrains(Mutant):
    def forward(self, data: Any, loss: Any) -> Any:
        if len(data) == 1:
            self.forward_backward(data, loss)
        return super().forward(data, loss)


class ForgetsTheVersion(Mutant):
    def load_state(self, directory: Any) -> Any:
        pending = super().load_state(directory)
        self._version = 0
        return pending


class RestartsInPart(Mutant):
    def restart(self) -> Any:
        gradient = self._gradient
        pending = super().restart()
        self._gradient = gradient
        return pending


class SavesLate(Mutant):
    def save_state(self, directory: Any) -> Any:
        class Late:
            async def result(late) -> None:  # noqa: N805
                await super(SavesLate, self).save_state(directory).result()

        return Late()


class ForgetsTheTimeToLive(Mutant):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.capabilities = attrs.evolve(self.capabilities, time_to_live=False)


class RejectsLate(Mutant):
    def forward_backward(self, data: Any, loss: Any) -> Any:
        class Late:
            async def result(late) -> Any:  # noqa: N805
                return await super(RejectsLate, self).forward_backward(data, loss).result()

        return Late()


class StuckAfterCancel(Mutant):
    async def sample(self, snapshot: Any, request: Any) -> Any:
        if self.requests_in_flight >= 1 and len(self.live_snapshots) == 1:
            self._seed_shift = 1
        shifted = attrs.evolve(request, seed=request.seed + getattr(self, "_seed_shift", 0))
        return await super().sample(snapshot, shifted)


@pytest.mark.parametrize(
    ("mutant", "caught_by"),
    [
        (IgnoresMaxTokens, "completions_are_well_formed"),
        (SeedsByOrder, "seeds_reproduce"),
        (EqualSamples, "samples_of_a_request_differ"),
        (DropsTheStop, "stop_tokens_end_a_completion"),
        (WarmLogprobs, "top_p_and_top_k_leave_logprobs_alone"),
        (LivingSnapshots, "snapshots_are_frozen"),
        (ReleasesTwice, "released_snapshots_are_gone"),
        (LastBatchOnly, "gradients_accumulate"),
        (ForwardTrains, "forward_has_no_effect"),
        (ForgetsTheVersion, "states_round_trip"),
        (RestartsInPart, "restarts_count_from_zero"),
        (SavesLate, "states_hold_their_moment"),
        (ForgetsTheTimeToLive, "time_to_live_is_kept_or_refused"),
        (RejectsLate, "bad_datums_are_rejected"),
        (StuckAfterCancel, "cancelled_calls_leave_nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_the_suite_notices(mutant: type[Mutant], caught_by: str) -> None:
    report = await conformance.examine(subject(mutant))
    assert caught_by in report.failed
    assert "NotConforming" in report.failed[caught_by]
    assert report.gaps == NO_GRADIENTS
    assert f"FAILED  {caught_by}" in str(report)


async def test_a_misspelt_gap_is_refused() -> None:
    wrong = attrs.evolve(subject(instant), gaps={"training_lerns": "a typo"})
    with pytest.raises(ValueError, match="training_lerns"):
        await conformance.examine(wrong)


async def test_waiting_backends_really_wait() -> None:
    """The timed subject above would prove little if its calls took no time."""
    backend = slow()
    began = anyio.current_time()
    snapshot = await backend.snapshot().result()
    await backend.sample(snapshot, subject(slow).request(num_samples=4))
    assert anyio.current_time() - began > 0.001
