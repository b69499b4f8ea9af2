"""The sampler: slots in order of priority, retries, deadlines, versions that live as long as they are used."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from actors import Sampler, SamplerSettings, SamplingFailed
from actors.sampler import FollowingPolicy, ServedPolicy
from engine.backends import Completion, ModelInput, SampleRequest, SamplingParams
from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.backends.simulated import ALWAYS, Constant, Failures, Fault, Hang, SamplerModel, SimulatedBackend
from engine.runtime.testing import every_cancellation, schedules, simulate

PARAMS = SamplingParams(max_tokens=8)


def request(seed: int, *, samples: int = 1, priority: float = 0.0) -> SampleRequest:
    return SampleRequest(ModelInput.from_tokens([1, 2, seed]), PARAMS, seed, samples, priority)


def make_backend(seconds: float = 1.0, *plan: Fault, **options: Any) -> SimulatedBackend:
    failures = Failures(plan=plan) if plan else None
    return SimulatedBackend(SamplerModel(seconds=Constant(seconds)), failures=failures, record=True, **options)


async def serving(backend: SimulatedBackend, **settings: Any) -> Sampler:
    sampler = Sampler(backend, SamplerSettings(**settings))
    sampler.publish(await backend.snapshot().result())
    return sampler


def asked(backend: SimulatedBackend) -> list[int]:
    assert backend.log is not None
    return [entry.seed for entry in backend.log.sampling]


# --- slots


def test_slots_bound_what_is_in_flight_and_order_is_by_priority_then_arrival() -> None:
    async def program() -> list[int]:
        backend = make_backend()
        sampler = await serving(backend, slots=2)
        async with anyio.create_task_group() as group:
            for seed, priority in enumerate([0.0, 0.0, 5.0, 1.0, 5.0, 1.0, -1.0]):
                group.start_soon(sampler.sample, request(seed, priority=priority), 0)
                await anyio.lowlevel.checkpoint()
                await anyio.sleep(0.01)
        assert sampler.statistics().peak_in_flight == 2
        assert sampler.statistics().in_flight == 0
        sampler.close()
        assert backend.live_snapshots == ()
        return asked(backend)

    for report in schedules(program, count=20):
        assert report.unwrap() == [0, 1, 6, 3, 5, 2, 4]


def test_big_request_is_not_overtaken_for_ever_and_takes_at_most_all_slots() -> None:
    async def program() -> tuple[list[int], int]:
        backend = make_backend()
        sampler = await serving(backend, slots=3)
        async with anyio.create_task_group() as group:
            for seed, samples in enumerate([1, 1, 3, 1, 99, 1]):
                group.start_soon(sampler.sample, request(seed, samples=samples), 0)
                await anyio.sleep(0.01)
        return asked(backend), sampler.statistics().peak_in_flight

    order, peak = simulate(program).unwrap()
    assert order == [0, 1, 2, 3, 4, 5]  # 3 waits behind 2, and 5 behind 4, though there is a slot for each of them
    assert peak == 99


def test_cancelled_requests_return_their_slots_wherever_they_are() -> None:
    async def program() -> None:
        backend = make_backend()
        sampler = await serving(backend, slots=2)
        try:
            async with anyio.create_task_group() as group:
                for seed in range(5):
                    group.start_soon(sampler.sample, request(seed, samples=1 + seed % 2), 0)
        finally:
            with anyio.CancelScope(shield=True):
                assert backend.requests_in_flight == 0
                assert sampler.statistics().in_flight == 0
                began = anyio.current_time()
                async with anyio.create_task_group() as group:  # all slots are there
                    group.start_soon(sampler.sample, request(90), 0)
                    group.start_soon(sampler.sample, request(91), 0)
                assert anyio.current_time() - began == pytest.approx(1.0)
                sampler.close()
                assert backend.live_snapshots == ()

    reports = [report for seed in range(3) for report in every_cancellation(program, seed=seed)]
    assert all(report.error is None for report in reports)
    assert sum(report.cancelled for report in reports) > 40


def test_one_cancelled_waiter_lets_the_next_go() -> None:
    async def program() -> list[int]:
        backend = make_backend()
        sampler = await serving(backend, slots=2)
        scope = anyio.CancelScope()

        async def given_up() -> None:
            with scope:
                await sampler.sample(request(2, samples=2), 0)

        async with anyio.create_task_group() as group:
            group.start_soon(sampler.sample, request(1), 0)
            await anyio.sleep(0.1)
            group.start_soon(given_up)
            await anyio.sleep(0.1)
            group.start_soon(sampler.sample, request(3), 0)
            await anyio.sleep(0.1)
            assert asked(backend) == [1]
            scope.cancel()
        return asked(backend)

    assert simulate(program).unwrap() == [1, 3]


# --- failures


def test_transient_failures_are_tried_again_after_growing_pauses() -> None:
    def times(seed: int) -> list[float]:
        backend = make_backend(0.0, Fault("sample", 1, TransientError, times=4))

        async def program() -> Sequence[Completion]:
            sampler = await serving(backend, attempts=5, backoff=1.0, backoff_limit=4.0)
            completions = await sampler.sample(request(seed), 0)
            assert sampler.statistics().retries == 4
            return completions

        assert len(simulate(program).unwrap()) == 1
        assert backend.log is not None
        return [entry.at for entry in backend.log.sampling]

    first = times(7)
    pauses = [after - before for before, after in itertools.pairwise(first)]
    for pause, base in zip(pauses, [1.0, 2.0, 4.0, 4.0], strict=True):
        assert base <= pause < 1.5 * base
    assert times(7) == first  # jitter follows from the seed
    assert times(8) != first


def test_gives_up_after_the_last_attempt_and_says_why() -> None:
    async def program() -> None:
        backend = make_backend(1.0, Fault("sample", 1, lambda: TransientError("busy"), times=ALWAYS))
        sampler = await serving(backend, attempts=3, slots=1)
        with pytest.raises(SamplingFailed, match="failed 3 times, the last time with: busy") as caught:
            await sampler.sample(request(1), 0)
        assert isinstance(caught.value.__cause__, TransientError)
        assert len(asked(backend)) == 3
        assert sampler.statistics().in_flight == 0
        assert sampler.statistics().completions == 0

    simulate(program).unwrap()


def test_rejected_requests_are_not_tried_again() -> None:
    async def program() -> None:
        backend = make_backend(1.0, Fault("sample", 1, lambda: RequestRejected("too long")))
        sampler = await serving(backend, slots=1)
        with pytest.raises(RequestRejected, match="too long"):
            await sampler.sample(request(1), 0)
        assert len(asked(backend)) == 1
        await sampler.sample(request(2), 0)  # the slot is free

    simulate(program).unwrap()


@pytest.mark.parametrize("own", [True, False])
def test_lost_requests_run_into_the_deadline(own: bool) -> None:
    """The settings' deadline, or else the one that the backend asks for."""

    async def program() -> float:
        backend = make_backend(1.0, Fault("sample", 1, Hang(), times=2))
        if not own:
            import attrs

            backend.capabilities = attrs.evolve(backend.capabilities, request_deadline=10.0)
        sampler = await serving(backend, deadline=10.0 if own else None, backoff=0.0)
        began = anyio.current_time()
        await sampler.sample(request(1), 0)
        assert sampler.statistics().retries == 2
        return anyio.current_time() - began

    assert simulate(program).unwrap() == pytest.approx(21.0)


def test_deadline_message_names_it() -> None:
    async def program() -> None:
        backend = make_backend(1.0, Fault("sample", 1, Hang(), times=ALWAYS))
        sampler = await serving(backend, deadline=2.5, attempts=2)
        with pytest.raises(SamplingFailed, match=r"no answer within the deadline of 2\.5 s"):
            await sampler.sample(request(1), 0)

    simulate(program).unwrap()


def test_wrong_number_of_completions_is_an_error() -> None:
    class Stingy(SimulatedBackend):
        async def sample(self, snapshot: Any, request: SampleRequest) -> Sequence[Completion]:
            return (await super().sample(snapshot, request))[:-1]

    async def program() -> None:
        sampler = await serving(Stingy())
        with pytest.raises(BackendError, match="gave 1 completions where 2 were asked for"):
            await sampler.sample(request(1, samples=2), 0)

    simulate(program).unwrap()


# --- versions


async def advance(backend: SimulatedBackend, sampler: Sampler) -> None:
    from engine.backends import AdamParams

    await backend.optim_step(AdamParams()).result()
    sampler.publish(await backend.snapshot().result())


def alive(backend: SimulatedBackend) -> list[int]:
    return [snapshot.version for snapshot in backend.live_snapshots]


def test_versions_live_as_long_as_they_are_used() -> None:
    async def program() -> None:
        backend = make_backend()
        sampler = await serving(backend)
        sampler.pin(0)
        sampler.pin(0)
        await advance(backend, sampler)
        await advance(backend, sampler)
        assert alive(backend) == [0, 2]
        assert (sampler.newest, list(sampler.in_use())) == (2, [0])
        sampler.unpin(0)
        assert alive(backend) == [0, 2]
        sampler.unpin(0)
        assert alive(backend) == [2]
        for call in (sampler.pin, sampler.unpin):
            with pytest.raises(BackendError, match="version 0 is not served"):
                call(0)
        with pytest.raises(BackendError, match="version 7 is not served"):
            await sampler.sample(request(1), 7)
        with pytest.raises(ValueError, match="version 2 is served already"):
            sampler.publish(backend.live_snapshots[0])
        sampler.close()
        assert alive(backend) == []

    simulate(program).unwrap()


def test_a_request_keeps_its_version_while_it_waits_for_a_slot_and_for_another_attempt() -> None:
    async def program() -> list[int]:
        backend = make_backend(5.0, Fault("sample", 2, TransientError))
        sampler = await serving(backend, slots=1)
        versions = []

        async def ask(seed: int) -> None:
            (completion,) = await sampler.sample(request(seed), 0)
            versions.append(completion.version)

        async with anyio.create_task_group() as group:
            for seed in range(2):
                group.start_soon(ask, seed)
                await anyio.sleep(0.1)
            await advance(backend, sampler)
            assert alive(backend) == [0, 1]
        assert alive(backend) == [1]
        sampler.close()
        return versions

    assert simulate(program).unwrap() == [0, 0]


def test_policies_by_group_and_by_turn() -> None:
    async def program() -> None:
        backend = make_backend()
        sampler = await serving(backend)
        sampler.pin(0)
        served, memory = ServedPolicy(sampler, 0), {}
        following = FollowingPolicy(sampler, memory)
        assert (await following.sample(request(1)))[0].version == 0
        await advance(backend, sampler)
        assert (await served.sample(request(2)))[0].version == 0
        assert (await following.sample(request(3)))[0].version == 1
        assert memory == {1: 0, 3: 1}
        sampler.unpin(0)
        await advance(backend, sampler)
        assert alive(backend) == [0, 1, 2]  # kept for a replay of what was asked of them
        assert (await following.sample(request(1)))[0].version == 0
        following.close()
        assert alive(backend) == [2]
        following.close()
        sampler.close()

    simulate(program).unwrap()


def test_busy_time_is_that_with_anything_in_flight() -> None:
    async def program() -> float:
        backend = make_backend(2.0)
        sampler = await serving(backend)
        async with anyio.create_task_group() as group:
            group.start_soon(sampler.sample, request(1), 0)
            await anyio.sleep(1.0)
            group.start_soon(sampler.sample, request(2), 0)
            await anyio.sleep(0.5)
            assert sampler.statistics().busy == pytest.approx(1.5)
            assert sampler.statistics().in_flight == 2
        await anyio.sleep(10.0)
        await sampler.sample(request(3, samples=4), 0)
        statistics = sampler.statistics()
        assert (statistics.requests, statistics.completions) == (3, 6)
        assert statistics.tokens == 6 * 8
        return statistics.busy

    assert simulate(program).unwrap() == pytest.approx(5.0)


@pytest.mark.parametrize(
    "settings", [{"slots": 0}, {"attempts": 0}, {"backoff": -1.0}, {"deadline": 0.0}, {"backoff_limit": -1.0}]
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SamplerSettings(**settings)


@pytest.mark.anyio
async def test_on_both_event_loops() -> None:
    backend = SimulatedBackend()
    sampler = await serving(backend, slots=3, deadline=60.0)
    async with anyio.create_task_group() as group:
        for seed in range(20):
            group.start_soon(sampler.sample, request(seed, samples=2), 0)
    assert sampler.statistics().completions == 40
    assert sampler.statistics().peak_in_flight <= 3
    sampler.close()
    assert backend.live_snapshots == ()
