"""TurnLimit: so many pieces of work between two turns of whoever else is on the event loop, and nobody waits for ever."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from engine.runtime import TurnLimit, simulate

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def most_between_turns(limit: TurnLimit | None, workers: int = 40, pieces: int = 5) -> tuple[int, int]:
    """The most pieces done while another task of the loop waited for its turn, and how many were done in all."""
    since, most, done = 0, 0, 0

    async def work() -> None:
        nonlocal since, done
        for _ in range(pieces):
            if limit is not None:
                await limit.wait()
            since += 1
            done += 1
            await anyio.lowlevel.checkpoint()

    async def look() -> None:
        nonlocal since, most
        while True:
            since = 0
            await anyio.lowlevel.checkpoint()
            most = max(most, since)

    async with anyio.create_task_group() as looking:
        looking.start_soon(look)
        async with anyio.create_task_group() as working:
            for _ in range(workers):
                working.start_soon(work)
        looking.cancel_scope.cancel()
    return most, done


async def test_so_many_in_a_turn() -> None:
    crowded, _ = await most_between_turns(None)
    assert crowded >= 40  # what it is good for
    most, done = await most_between_turns(TurnLimit(4))
    assert done == 200
    assert most <= 8  # two turns of the loop may lie between two looks


async def test_one_who_is_cancelled_while_waiting_takes_nobodys_place() -> None:
    limit = TurnLimit(1)
    await limit.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limit.wait()
    assert scope.cancelled_caught
    with anyio.fail_after(1):
        for _ in range(5):
            await limit.wait()


def test_the_same_course_in_every_simulation() -> None:
    async def program() -> list[int]:
        limit, order = TurnLimit(3), list[int]()

        async def work(number: int) -> None:
            for _ in range(3):
                await limit.wait()
                order.append(number)

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(work, number)
        return order

    for seed in range(20):
        first = simulate(program, seed=seed).unwrap()
        assert sorted(first) == sorted(list(range(10)) * 3)
        assert simulate(program, seed=seed).unwrap() == first


def test_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TurnLimit(0)
