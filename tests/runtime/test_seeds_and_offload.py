"""Derived seeds, and work beside the event loop."""

from __future__ import annotations

import contextvars
import threading

import anyio
import numpy as np
import pytest
from scipy import stats

from engine.runtime import derive_seed, offload, simulate
from engine.runtime.offload import inline
from engine.runtime.seeds import _mix

GOLDEN = 0x9E3779B97F4A7C15


def test_the_mixer_is_splitmix64() -> None:
    """The first outputs of the generator for the seed 1234567, as the reference implementation (Vigna, public domain) gives them."""
    outputs = [_mix(1234567 + (step + 1) * GOLDEN & (1 << 64) - 1) for step in range(5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_seeds_are_the_same_everywhere() -> None:
    """Constants: a run recorded on one machine is replayed on another."""
    assert derive_seed(0) == 0
    assert derive_seed(7) == 673033133788753802
    assert derive_seed(7, 1) == 8854151932040890862
    assert derive_seed(7, 1, 2) == 2024710506077512056
    assert derive_seed(7, 2, 1) == 998607960559279806
    assert derive_seed(-1, 2**63) == derive_seed(2**64 - 1, -(2**63))


def test_numbers_of_numpy_count_as_numbers() -> None:
    assert derive_seed(np.int64(7), np.int32(1), np.uint64(2)) == derive_seed(7, 1, 2)
    assert type(derive_seed(np.int64(7), np.int32(1))) is int


def test_neighbouring_places_get_distinct_seeds() -> None:
    seeds = {derive_seed(run, group, member) for run in range(20) for group in range(100) for member in range(100)}
    assert len(seeds) == 20 * 100 * 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_path_matters_not_its_sum_or_its_length() -> None:
    assert (
        len({derive_seed(0, *path) for path in ((), (0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (2, 3), (3, 2))})
        == 9
    )


@pytest.mark.parametrize("bit", [0, 1, 17, 31, 32, 53, 62])
def test_every_bit_is_a_fair_coin(bit: int) -> None:
    draws_n = np.array([derive_seed(3, number) >> bit & 1 for number in range(4000)])
    assert stats.binomtest(int(draws_n.sum()), len(draws_n)).pvalue > 1e-3
    pairs = np.bincount(2 * draws_n[:-1] + draws_n[1:], minlength=4)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_seeds_are_uniform_and_neighbours_unrelated() -> None:
    draws_n = np.array([derive_seed(11, number) / 2**63 for number in range(4000)])
    assert stats.kstest(draws_n, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws_n[:-1], draws_n[1:])[0, 1]) < 0.05
    of_other_runs = np.array([derive_seed(12, number) / 2**63 for number in range(4000)])
    assert abs(np.corrcoef(draws_n, of_other_runs)[0, 1]) < 0.05


# --- offload


@pytest.mark.anyio
async def test_work_goes_to_a_thread_and_its_result_comes_back() -> None:
    thread, total = await offload(lambda a, b: (threading.get_ident(), a + b), 2, 3)
    assert total == 5
    assert thread != threading.get_ident()


@pytest.mark.anyio
async def test_an_error_of_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await offload(lambda: 1 // 0)


def test_under_simulation_work_is_done_inline_and_takes_no_time() -> None:
    async def program() -> tuple[int, int, float]:
        threads: list[int] = []

        async def work() -> None:
            threads.append(await offload(threading.get_ident))

        async with anyio.create_task_group() as group:
            group.start_soon(work)  # the tasks of the program inherit it
        return threads[0], await offload(threading.get_ident), anyio.current_time()

    here = threading.get_ident()
    assert simulate(program).unwrap() == (here, here, 0)


def test_that_work_is_done_inline_ends_with_the_simulation() -> None:
    async def program() -> bool:
        return inline.get()

    assert simulate(program).unwrap()
    assert not inline.get()
    assert not contextvars.copy_context().run(inline.get)

    async def failing() -> None:
        raise ValueError

    simulate(failing)
    assert not inline.get()
    assert anyio.run(offload, threading.get_ident) != threading.get_ident()


def test_inline_work_is_a_checkpoint_before_it_begins() -> None:
    async def program() -> list[str]:
        done: list[str] = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            await offload(done.append, "work")
        return done

    assert simulate(program).unwrap() == []


def test_work_under_way_is_finished_before_a_cancellation_goes_on() -> None:
    """A half-written file helps nobody."""
    begun, proceed, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert proceed.wait(20)
        finished.set()

    async def program() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(offload, work)
            await anyio.to_thread.run_sync(begun.wait, 20)
            group.cancel_scope.cancel()
            proceed.set()

    for backend in ("asyncio", "trio"):
        for event in (begun, proceed, finished):
            event.clear()
        anyio.run(program, backend=backend)
        assert finished.is_set()
