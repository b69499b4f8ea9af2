"""Programs that the tests of programs run, and how they run them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel

from engine.runtime import Channel, Program, Receiver, Sender
from engine.runtime.testing import schedules

SCHEDULES = 50


class Boom(Exception):
    """A failure that a test asked for."""


def everywhere(program: Callable[[], Awaitable[None]], count: int = SCHEDULES, **options: Any) -> None:
    """Runs the program under many schedules on the virtual clock, and on asyncio. A hang is a Deadlock on the one, a timeout on the other."""
    for report in schedules(program, count=count, horizon=1e6, **options):
        report.unwrap()

    async def limited() -> None:
        with anyio.fail_after(20):
            await program()
        assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

    anyio.run(limited, backend="asyncio")


async def count_to(limit: int, out: Sender[int]) -> None:
    for number in range(limit):
        await out.send(number)


async def double(numbers: Receiver[int], out: Sender[int]) -> None:
    async for number in numbers:
        await out.send(2 * number)


async def collect(numbers: Receiver[int], into: list[int]) -> None:
    async for number in numbers:
        into.append(number)


async def idle(*_: Any) -> None:
    await anyio.sleep_forever()


def pipeline(into: list[int], *, limit: int = 10, doubler: Any = double, capacity: int = 2, **options: Any) -> Program:
    """source -> doubler -> logger."""
    numbers: Channel[int] = Channel("numbers", capacity)
    doubled: Channel[int] = Channel("doubled", capacity)
    program = Program("pipeline", **options)
    program.actor("source", count_to, limit, numbers.sender())
    program.actor("doubler", doubler, numbers.receiver(), doubled.sender())
    program.drain("logger", collect, doubled.receiver(), into)
    return program


def all_closed(program: Program) -> bool:
    records = [channel.statistics() for channel in program.channels]
    return all(record.open_senders == record.open_receivers == 0 for record in records)


async def hang(receiver: Receiver[int]) -> None:
    async for _ in receiver:
        pass
    await anyio.sleep_forever()
