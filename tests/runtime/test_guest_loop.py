"""A guest's loop: calls in both directions on asyncio and trio, errors, cancellation, and its end. Threads need a real clock."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import anyio
import anyio.lowlevel
import pytest
import sniffio

from engine.runtime.guest_loop import GuestLoop, guest_loop

pytestmark = pytest.mark.anyio
said: contextvars.ContextVar[str] = contextvars.ContextVar("said", default="nothing")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def where() -> tuple[str, int]:
    await anyio.lowlevel.checkpoint()
    return sniffio.current_async_library(), threading.get_ident()


async def test_each_side_runs_on_its_own_loop(anyio_backend: str) -> None:
    said.set("hello")

    async def there(guest: GuestLoop, number: int) -> list[object]:
        await asyncio.sleep(0)
        return [await where(), await guest.home(where), await guest.home(heard), number]

    async def heard() -> str:
        return said.get()

    async with guest_loop() as guest:
        theirs, ours, context, number = await guest.run(there, guest, 7)
        assert theirs[0] == "asyncio"
        assert ours == (anyio_backend, threading.get_ident())
        assert theirs[1] != ours[1]
        assert (context, number) == ("hello", 7)
        again = await guest.run(where)
        assert again == theirs
    assert not [thread for thread in threading.enumerate() if thread.name == "guest"]
    with pytest.raises(RuntimeError, match="loop has ended"):
        await guest.run(where)


async def test_a_guest_that_blocks_does_not_hold_us_up() -> None:
    async def blocks() -> None:
        time.sleep(0.3)  # noqa: ASYNC251  (the point)

    ticks = 0
    async with guest_loop() as guest, anyio.create_task_group() as tasks:

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.01)
                ticks += 1

        tasks.start_soon(tick)
        await guest.run(blocks)
        tasks.cancel_scope.cancel()
    assert ticks >= 10


async def test_errors_cross_as_themselves() -> None:
    async def fails() -> None:
        raise KeyError("over here")

    async def catches(guest: GuestLoop) -> str:
        try:
            await guest.home(fails)
        except KeyError as error:
            return str(error)
        return "nothing was raised"

    async with guest_loop() as guest:
        assert await guest.run(catches, guest) == "'over here'"
        with pytest.raises(KeyError, match="over here"):
            await guest.run(fails)


async def test_cancelled_here_it_is_cancelled_there_and_waited_for() -> None:
    events: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            events.append("cleaned up")
            raise

    async with guest_loop() as guest:
        with anyio.move_on_after(0.05) as scope:
            await guest.run(waits)
        assert scope.cancelled_caught
        assert events == ["cleaned up"]
        assert (await guest.run(where))[0] == "asyncio"


async def test_cancelled_there_it_is_cancelled_here() -> None:
    events: list[str] = []

    async def waits() -> None:
        try:
            await anyio.sleep(1000)
        except anyio.get_cancelled_exc_class():
            events.append("cancelled")
            raise

    async def gives_up(guest: GuestLoop) -> str:
        try:
            await asyncio.wait_for(guest.home(waits), 0.05)
        except TimeoutError:
            return "gave up"
        return "waited"

    async with guest_loop() as guest:
        assert await guest.run(gives_up, guest) == "gave up"
    assert events == ["cancelled"]


async def test_our_end_ends_the_guest_and_what_it_asked_of_us() -> None:
    events: list[str] = []

    async def ours() -> None:
        try:
            await anyio.sleep(1000)
        finally:
            events.append("ours")

    async def theirs(guest: GuestLoop) -> None:
        try:
            await guest.home(ours)
        finally:
            events.append("theirs")

    with anyio.move_on_after(0.1):
        async with guest_loop() as guest:
            await guest.run(theirs, guest)
    assert sorted(events) == ["ours", "theirs"]


async def test_a_guest_that_will_not_end_is_left_with_a_warning() -> None:
    release = threading.Event()

    async def stubborn() -> None:
        release.wait(20)

    async def ask() -> None:
        async with guest_loop("stubborn", grace=0.05) as guest:
            with anyio.move_on_after(0.05):
                await guest.run(stubborn)

    with pytest.warns(ResourceWarning) as warned:
        await ask()
    assert [str(warning.message) for warning in warned] == [
        f"{stubborn.__qualname__} did not end within 0.05 s of its cancellation",
        "the thread of stubborn goes on: it did not end within 0.05 s",
    ]
    release.set()
    for thread in threading.enumerate():
        if thread.name == "stubborn":
            await anyio.to_thread.run_sync(thread.join, 5)
