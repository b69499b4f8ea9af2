"""The simulated backend's own promises: its queue, its clock, its failures, its log, and a resume that finds the server as it was."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends import (
    AdamParams,
    Datum,
    Loss,
    ModelInput,
    RequestRejected,
    SampleRequest,
    SamplingParams,
    TransientError,
    UnusableState,
)
from engine.backends.simulated import (
    ALWAYS,
    Constant,
    Draw,
    Empirical,
    Exponential,
    Failures,
    Fault,
    Hang,
    LogNormal,
    SamplerModel,
    SimulatedBackend,
    TrainerModel,
    Uniform,
)
from engine.backends.simulated.distributions import ticks
from engine.backends.simulated.model import unit
from engine.runtime import simulate


def request(seed: int = 0, samples: int = 1, prompt: int = 40, priority: float = 0.0, **params: Any) -> SampleRequest:
    return SampleRequest(ModelInput.from_tokens([prompt, 41, 42]), SamplingParams(**params), seed, samples, priority)


def datum(token: int = 50, **changes: Any) -> Datum:
    inputs = {"target_tokens": np.array([token, 51, 52]), "weights": np.ones(3, np.float32)} | changes
    return Datum(ModelInput.from_tokens([1, 2, 3]), inputs)


CE = Loss("cross_entropy")


def scripted(durations: dict[int, list[float]]) -> SamplerModel:
    """Sample i of the request with seed s takes durations[s][i] seconds."""
    return SamplerModel(script=lambda asked, i: Draw(np.array([50 + i], np.int32), durations[asked.seed][i]))


def virtually(program: Callable[[], Awaitable[Any]], seed: int = 0) -> Any:
    return simulate(program, seed=seed).unwrap()


# --- time and slots


def queue(arrivals: list[tuple[float, float, list[float]]], slots: int) -> list[float]:
    """When each (arrival, priority, durations) is done: an event simulation written without looking at the backend's."""
    now, free = 0.0, slots
    waiting: list[tuple[float, int, int]] = []
    running: list[tuple[float, int]] = []
    done = [0.0] * len(arrivals)
    todo = sorted(range(len(arrivals)), key=lambda index: (arrivals[index][0], index))
    while todo or waiting or running:
        now = min([arrivals[todo[0]][0]] if todo else [np.inf], [running[0][0]] if running else [np.inf])[0]
        while running and running[0][0] <= now:
            _, index = heapq.heappop(running)
            free += 1
            done[index] = now
        while todo and arrivals[todo[0]][0] <= now:
            index = todo.pop(0)
            for sample in range(len(arrivals[index][2])):
                heapq.heappush(waiting, (arrivals[index][1], index, sample))
        while free and waiting:
            _, index, sample = heapq.heappop(waiting)
            free -= 1
            heapq.heappush(running, (now + arrivals[index][2][sample], index))
    return done


eighths = st.integers(0, 40).map(lambda n: n / 8)
jobs = st.tuples(
    eighths, st.sampled_from([0.0, 1.0]), st.lists(eighths.map(lambda t: t + 0.125), min_size=1, max_size=4)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 5))
def test_the_queue_is_by_priority_and_arrival_and_each_sample_frees_its_slot(
    arrivals: list[tuple[float, float, list[float]]], slots: int, seed: int
) -> None:
    # Different arrival instants: which of two simultaneous ones comes first is the scheduler's business.
    arrivals = [
        (at + index / 1024, priority, durations) for index, (at, priority, durations) in enumerate(sorted(arrivals))
    ]
    backend = SimulatedBackend(scripted({i: job[2] for i, job in enumerate(arrivals)}), slots=slots)
    done: dict[int, float] = {}

    async def main() -> None:
        snapshot = await backend.snapshot().result()

        async def ask(index: int) -> None:
            at, priority, durations = arrivals[index]
            await anyio.sleep_until(at)
            await backend.sample(snapshot, request(index, len(durations), priority=priority))
            done[index] = anyio.current_time()

        async with anyio.create_task_group() as tasks:
            for index in range(len(arrivals)):
                tasks.start_soon(ask, index)

    virtually(main, seed)
    assert [done[index] for index in range(len(arrivals))] == pytest.approx(queue(arrivals, slots), abs=2e-6)
    assert backend.requests_in_flight == 0
    assert backend.sampler_busy_seconds == pytest.approx(sum(sum(job[2]) for job in arrivals), abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_requests_give_their_slots_back_at_once(seed: int) -> None:
    backend = SimulatedBackend(scripted({1: [10.0, 10.0], 2: [10.0], 3: [1.0], 4: [1.0]}), slots=2)

    async def main() -> float:
        snapshot = await backend.snapshot().result()
        done: list[float] = []

        async def ask(number: int) -> None:
            await backend.sample(snapshot, request(number))
            done.append(anyio.current_time())

        async with anyio.create_task_group() as tasks, anyio.create_task_group() as doomed:
            doomed.start_soon(backend.sample, snapshot, request(1, 2))
            doomed.start_soon(backend.sample, snapshot, request(2))
            await anyio.sleep(0.5)
            tasks.start_soon(ask, 3)
            tasks.start_soon(ask, 4)
            await anyio.sleep(0.5)
            assert backend.requests_in_flight == 4
            doomed.cancel_scope.cancel()
        assert backend.requests_in_flight == 0
        return max(done)

    assert simulate(main, seed=seed).unwrap() == 2.0
    assert backend.sampler_busy_seconds == 2 * 1.0 + 2 * 1.0


def test_the_trainer_is_serial_and_submissions_overlap_with_waiting() -> None:
    async def main() -> list[float]:
        backend = SimulatedBackend(trainer=TrainerModel(per_call=1.0, per_datum=0.5, optim_step=2.0, snapshot=0.25))
        first = backend.forward_backward([datum(), datum()], CE)
        step = backend.optim_step(AdamParams())
        frozen = backend.snapshot()
        times = []
        for pending in (first, step, frozen):
            await pending.result()
            times.append(anyio.current_time())
        await anyio.sleep(10.0)
        await backend.optim_step(AdamParams()).result()
        return [*times, anyio.current_time(), backend.trainer_free_at, backend.trainer_busy_seconds]

    assert virtually(main) == pytest.approx([2.0, 4.0, 4.25, 16.25, 16.25, 6.25])


def test_zero_latency_is_one_checkpoint_and_no_time() -> None:
    async def main() -> tuple[float, int]:
        backend = SimulatedBackend()
        snapshot = await backend.snapshot().result()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await anyio.lowlevel.checkpoint()
            before = turns
            for seed in range(10):
                await backend.sample(snapshot, request(seed))
            tasks.cancel_scope.cancel()
        return anyio.current_time(), turns - before

    for seed in range(5):
        time, turns = virtually(main, seed)
        assert time == 0.0
        assert 9 <= turns <= 11


# --- content


def test_draws_follow_their_distributions() -> None:
    u, v = [[unit(stream, i) for i in range(20000)] for stream in (1, 2)]

    def drawn(distribution: Any) -> np.ndarray:
        return np.array([distribution.draw(*pair) for pair in zip(u, v, strict=True)])

    assert drawn(LogNormal(0.5, 1.0)).mean() == pytest.approx(0.5, rel=0.05)
    assert np.log(drawn(LogNormal(0.5, 1.0))).std() == pytest.approx(1.0, rel=0.03)
    assert drawn(LogNormal(0.5, 1.0, 2.0)).max() == 2.0
    assert drawn(Exponential(3.0)).mean() == pytest.approx(3.0, rel=0.05)
    assert drawn(Uniform(1.0, 3.0)).mean() == pytest.approx(2.0, rel=0.02)
    assert set(drawn(Empirical([1.0, 5.0]))) == {1.0, 5.0}
    assert set(drawn(Constant(2.0))) == {2.0}
    with pytest.raises(ValueError, match="below low"):
        Uniform(2.0, 1.0)


def test_ticks_make_sums_exact() -> None:
    a, b, c = ticks(0.1), ticks(0.7), ticks(12345.6)
    assert (c + a + b) - c == a + b
    assert a == pytest.approx(0.1, abs=1e-6)


def test_durations_and_lengths_go_together() -> None:
    model = SamplerModel(seconds=LogNormal(0.5, 1.0), sec_per_token=0.01)

    async def main() -> None:
        backend = SimulatedBackend(model)
        snapshot = await backend.snapshot().result()
        for seed in range(20):
            began = anyio.current_time()
            (completion,) = await backend.sample(snapshot, request(seed, max_tokens=60))
            assert anyio.current_time() - began == pytest.approx(0.01 * len(completion.tokens), abs=1e-5)
            assert len(completion.tokens) == 60 if completion.stop_reason == "length" else len(completion.tokens) <= 60
            reasons.add(completion.stop_reason)

    reasons: set[str] = set()
    virtually(main)
    assert reasons == {"stop", "length"}


@pytest.mark.anyio
async def test_tokens_depend_on_history_only_where_asked() -> None:
    for dependent in (False, True):
        drawn = []
        for token in (50, 60):
            backend = SimulatedBackend(SamplerModel(policy_dependent=dependent))
            backend.forward_backward([datum(token)], CE)
            backend.optim_step(AdamParams())
            snapshot = await backend.snapshot().result()
            drawn.append((await backend.sample(snapshot, request(1)))[0].tokens.tolist())
        assert (drawn[0] != drawn[1]) is dependent


# --- failures


def test_planned_faults_hit_the_calls_they_name() -> None:
    plan = [
        Fault("sample", 2, TransientError("busy"), times=2, after=1.0),
        Fault("forward_backward", 1, RequestRejected("bad"), at_submission=True),
        Fault("optim_step", 1, lambda: TransientError("lost")),
        Fault("save_state", 1, OSError, times=ALWAYS),
        Fault("snapshot", 2, Hang()),
    ]

    async def main() -> None:
        backend = SimulatedBackend(failures=Failures(plan=plan), record=True)
        snapshot = await backend.snapshot().result()
        await backend.sample(snapshot, request(1))
        for _ in range(2):
            with pytest.raises(TransientError, match="busy"):
                await backend.sample(snapshot, request(1))
        assert anyio.current_time() == 2.0
        await backend.sample(snapshot, request(1))
        with pytest.raises(RequestRejected, match="bad"):
            backend.forward_backward([datum()], CE)
        with pytest.raises(TransientError, match="lost"):
            await backend.optim_step(AdamParams()).result()
        assert backend.version == 0
        for _ in range(3):
            with pytest.raises(OSError):
                await backend.save_state(Path("nowhere")).result()
        with anyio.move_on_after(5.0) as scope:
            await backend.snapshot().result()
        assert scope.cancelled_caught
        assert backend.requests_in_flight == 0

    virtually(main)


def test_chance_failures_depend_on_the_request_and_the_attempt_alone() -> None:
    async def outcomes(order: list[int]) -> dict[int, list[bool]]:
        backend = SimulatedBackend(failures=Failures({"sample": 0.4}, seed=3))
        snapshot = await backend.snapshot().result()
        found: dict[int, list[bool]] = {}
        for seed in order:
            try:
                await backend.sample(snapshot, request(seed))
            except TransientError:
                found.setdefault(seed, []).append(False)
            else:
                found.setdefault(seed, []).append(True)
        return found

    forwards = virtually(lambda: outcomes([*range(200), *range(200)]))
    backwards = virtually(lambda: outcomes([*reversed(range(200)), *range(200)]))
    assert forwards == backwards
    failed = [not fine for attempts in forwards.values() for fine in attempts]
    assert 0.3 < np.mean(failed) < 0.5
    assert any(attempts[0] != attempts[1] for attempts in forwards.values())


# --- snapshots, datums, states, the log


@pytest.mark.anyio
async def test_snapshots_live_from_delivery_to_release() -> None:
    backend = SimulatedBackend()
    backend.snapshot()  # never delivered: nobody could release it
    snapshot = await backend.snapshot().result()
    assert backend.live_snapshots == (snapshot,)
    other = SimulatedBackend()
    with pytest.raises(RequestRejected, match="another backend"):
        await other.sample(snapshot, request())
    backend.release(snapshot)
    assert backend.live_snapshots == ()
    with pytest.raises(RequestRejected, match="released already"):
        backend.release(snapshot)


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ([], CE, "no datums"),
        ([datum(), datum(weights=np.ones(2, np.float32))], CE, r"datum 1: 'weights' has shape \(2,\)"),
        ([datum(), datum(weights=np.array([1, np.nan, 1], np.float32))], CE, "datum 1: 'weights' must hold finite"),
        ([datum(target_tokens=np.array([1, -1, 2]))], CE, "datum 0: 'target_tokens' must hold token ids"),
        ([datum(target_tokens=np.ones(3))], CE, "datum 0: 'target_tokens' must hold token ids"),
        ([datum()], Loss("ppo"), "datum 0: 'logprobs' is missing"),
        ([datum()], Loss("pop"), "unknown loss 'pop'"),
        ([Datum(ModelInput.from_tokens([]), {})], CE, "datum 0: model_input is empty"),
        ([attrs.evolve(datum(), model_input=ModelInput.from_tokens(range(20)))], CE, "context is 10"),
    ],
)
@pytest.mark.anyio
async def test_bad_datums_are_named(data: list[Datum], loss: Loss, message: str) -> None:
    backend = SimulatedBackend(max_context=10)
    with pytest.raises(RequestRejected, match=message):
        backend.forward_backward(data, loss)


@pytest.mark.anyio
async def test_rejected_settings() -> None:
    with pytest.raises(ValueError, match="slots"):
        SimulatedBackend(slots=0)
    with pytest.raises(ValueError, match="vocabulary"):
        SamplerModel(vocabulary=(5, 5))
    with pytest.raises(ValueError, match="track_weights"):
        SimulatedBackend(SamplerModel(policy_dependent=True), track_weights=False)
    with pytest.raises(ValueError, match="at least one token"):
        SimulatedBackend(SamplerModel(length=Constant(0)))


@pytest.mark.anyio
async def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    await SimulatedBackend(seed=1).save_state(tmp_path).result()
    with pytest.raises(UnusableState, match="another simulated model: its seed is 1, not 2"):
        await SimulatedBackend(seed=2).load_state(tmp_path).result()
    with pytest.raises(UnusableState, match="wanted a snapshot"):
        await SimulatedBackend(seed=1).load_snapshot(tmp_path).result()


@pytest.mark.anyio
async def test_the_log_tells_runs_apart() -> None:
    async def run(seed: int, token: int, rate: float) -> SimulatedBackend:
        backend = SimulatedBackend(record=True)
        snapshot = await backend.snapshot().result()
        await backend.sample(snapshot, request(seed, max_tokens=5))
        await backend.forward_backward([datum(token), datum()], CE).result()
        await backend.optim_step(AdamParams(rate)).result()
        return backend

    first = await run(1, 50, 1e-3)
    assert first.log is not None
    for other, equal in [
        ((1, 50, 1e-3), (True, True)),
        ((2, 50, 1e-3), (False, True)),
        ((1, 51, 1e-3), (True, False)),
        ((1, 50, 1e-4), (True, False)),
    ]:
        log = (await run(*other)).log
        assert log is not None
        assert (log.sampling == first.log.sampling, log.training == first.log.training) == equal
    assert [entry.call for entry in first.log.training] == ["snapshot", "forward_backward", "optim_step"]
    assert len(first.log.trained(0)) == 2
    assert first.log.trained(1) == ()


def scenario(
    backend: SimulatedBackend, done: dict[int, float], arrivals: list[tuple[float, int]], since: float, until: float
) -> Any:
    """Requests at their times, of which those not done by `since` are asked again at once."""

    async def main() -> None:
        snapshot = await backend.snapshot().result()
        origin = anyio.current_time()

        async def ask(at: float, seed: int) -> None:
            await anyio.sleep_until(origin + max(0.0, at - since))
            await backend.sample(snapshot, request(seed, samples=3))
            done[seed] = anyio.current_time() - origin + since

        with anyio.move_on_after(until):
            async with anyio.create_task_group() as tasks:
                for at, seed in arrivals:
                    tasks.start_soon(ask, at, seed)

    return main


@pytest.mark.parametrize("slots", [None, 2, 5])
@pytest.mark.parametrize("cut", [0.5, 1.7, 3.0])
def test_a_resumed_server_finishes_when_the_uninterrupted_one_would(
    slots: int | None, cut: float, tmp_path: Path
) -> None:
    model = SamplerModel(seconds=LogNormal(0.6, 1.0, 5.0))
    arrivals = [(0.25 * index, index) for index in range(16)]
    costs = TrainerModel(per_call=2.5)

    async def uninterrupted() -> float:
        backend = SimulatedBackend(model, costs, slots=slots, record=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scenario(backend, whole, arrivals, 0.0, 1e6))
            await anyio.sleep(cut - 0.4)
            backend.forward_backward([datum()], CE)
            await anyio.sleep(0.4)
            await backend.save_state(tmp_path).result()
        return backend.trainer_free_at - cut

    async def resumed() -> float:
        backend = SimulatedBackend(model, costs, slots=slots, record=True)
        await anyio.sleep(7.3)  # another clock
        await backend.load_state(tmp_path).result()
        began = anyio.current_time()
        # In another order, as a restarted source may ask; the server's own order stands.
        again = sorted((job for job in arrivals if job[0] < cut), reverse=True) + [
            job for job in arrivals if job[0] >= cut
        ]
        await scenario(backend, parted, again, cut, 1e6)()
        return backend.trainer_free_at - began

    whole: dict[int, float] = {}
    parted: dict[int, float] = {}
    free = virtually(uninterrupted)
    assert virtually(resumed) == pytest.approx(free)
    for seed, at in whole.items():
        expected = max(at, cut)  # what was done by then is answered at once
        assert parted[seed] == pytest.approx(expected, abs=1e-9), seed


def test_without_recording_a_resume_starts_requests_afresh(tmp_path: Path) -> None:
    async def main() -> float:
        backend = SimulatedBackend(SamplerModel(seconds=Constant(4.0)))
        snapshot = await backend.snapshot().result()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.sample, snapshot, request(1))
            await anyio.sleep(3.0)
            await backend.save_state(tmp_path).result()
            tasks.cancel_scope.cancel()
        other = SimulatedBackend(SamplerModel(seconds=Constant(4.0)))
        await other.load_state(tmp_path).result()
        began = anyio.current_time()
        await other.sample(await other.snapshot().result(), request(1))
        return anyio.current_time() - began

    assert virtually(main) == 4.0


@pytest.mark.anyio
async def test_slots_work_on_a_real_clock_too(anyio_backend: Any) -> None:
    durations = {seed: [0.002 * (1 + (seed * 7 + i) % 3) for i in range(3)] for seed in range(12)}
    backend = SimulatedBackend(scripted(durations), slots=4)
    snapshot = await backend.snapshot().result()
    began = anyio.current_time()
    answered = itertools.count()

    async def ask(seed: int) -> None:
        await backend.sample(snapshot, request(seed, 3))
        next(answered)

    async with anyio.create_task_group() as tasks:
        for seed in durations:
            tasks.start_soon(ask, seed)
    assert next(answered) == 12
    assert anyio.current_time() - began >= sum(map(sum, durations.values())) / 4 - 1e-4
