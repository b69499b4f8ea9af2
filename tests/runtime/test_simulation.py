"""`simulate`: one seed one run, to the byte; errors, deadlocks and cancellations end in the report; nothing of it stays behind."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import trio
from trio._core import _run

from engine.runtime import Channel, Deadlock, Program, Receiver, Sender, simulate
from engine.runtime.testing import every_cancellation, schedules

ROOT = Path(__file__).parents[2]


class Boom(Exception):
    """A failure that a test asked for."""


async def busy() -> list[str]:
    """Task groups, streams, channels, events, locks, semaphores, conditions and deadlines, all racing each other; the trace says who came when."""
    trace: list[str] = []
    lock, semaphore, event, condition = anyio.Lock(), anyio.Semaphore(2), anyio.Event(), anyio.Condition()
    send, receive = anyio.create_memory_object_stream[int](1)
    channel: Channel[int] = Channel("channel", 1)

    def note(text: str) -> None:
        trace.append(f"{anyio.current_time():.3f} {text}")

    async def racer(name: int) -> None:
        async with lock:
            note(f"lock {name}")
            await anyio.lowlevel.checkpoint()
        async with semaphore:
            note(f"semaphore {name}")
            await anyio.sleep(0.25 * (name % 2))
        await event.wait()
        with anyio.move_on_after(0.5) as scope:
            await anyio.sleep(0.5)  # due at the same moment as the deadline
        note(f"event {name} {scope.cancelled_caught}")
        async with condition:
            condition.notify()
            note(f"condition {name}")

    async def producer(name: int, out: Sender[int]) -> None:
        async with send.clone() as stream:
            for number in range(3):
                await stream.send(10 * name + number)
                await out.send(10 * name + number)
        out.close()

    async def stream_consumer(name: int) -> None:
        async with receive.clone() as stream:
            async for number in stream:
                note(f"stream {name} {number}")

    async def channel_consumer(name: int, numbers: Receiver[int]) -> None:
        async for number in numbers:
            note(f"channel {name} {number}")
        numbers.close()

    async with anyio.create_task_group() as group, send, receive:
        for name in range(4):
            group.start_soon(racer, name)
        for name in range(2):
            group.start_soon(producer, name, channel.sender())
            group.start_soon(stream_consumer, name)
            group.start_soon(channel_consumer, name, channel.receiver())
        await anyio.sleep(1)
        event.set()
        send.close()
        receive.close()
        async with anyio.create_task_group() as inner:
            inner.start_soon(anyio.sleep, 3600)
            inner.start_soon(anyio.sleep, 1800)
    note("end")
    return trace


def trace_of(seed: int) -> str:
    report = simulate(busy, seed=seed)
    lines = "\n".join([*report.unwrap(), f"{report.seconds} {report.steps}"])
    return hashlib.sha256(lines.encode()).hexdigest()


def test_the_same_seed_gives_the_same_run_to_the_byte() -> None:
    assert [trace_of(seed) for seed in range(20)] == [trace_of(seed) for seed in range(20)]


def test_other_seeds_give_other_orders() -> None:
    assert len({trace_of(seed) for seed in range(20)}) > 15


def test_the_same_seed_gives_the_same_run_in_another_process() -> None:
    """With other hashes and other addresses: nothing depends on the order of a set."""
    program = "from tests.runtime.test_simulation import trace_of; print([trace_of(seed) for seed in range(3)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert outputs == {f"{[trace_of(seed) for seed in range(3)]}\n"}


def test_an_hour_passes_at_once_and_to_the_second() -> None:
    async def program(hours: int) -> float:
        for _ in range(hours):
            await anyio.sleep(3600)
        return anyio.current_time()

    report = simulate(program, 24 * 30)
    assert (report.value, report.seconds) == (30 * 24 * 3600, 30 * 24 * 3600)
    assert report.error is None
    assert not report.cancelled


def test_arguments_and_value() -> None:
    async def program(a: int, b: int) -> int:
        await anyio.lowlevel.checkpoint()
        return a - b

    assert simulate(program, 5, 3, seed=9).unwrap() == 2
    assert simulate(program, 5, 3, seed=9).seed == 9


# --- errors


def test_an_error_is_in_the_report() -> None:
    async def program() -> None:
        await anyio.sleep(2)
        raise Boom("text")

    report = simulate(program)
    assert repr(report.error) == "Boom('text')"
    assert (report.value, report.cancelled, report.seconds) == (None, False, 2)
    with pytest.raises(Boom, match="text"):
        report.unwrap()


def test_an_error_beside_a_cancellation_is_in_the_report() -> None:
    """Of a group of cancellations and an error, as a program's cleanup can leave it, the error is kept."""

    async def program() -> None:
        async def fails_in_cleanup() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise Boom("in cleanup")

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.start_soon(fails_in_cleanup)

    errors = [
        report.error for report in every_cancellation(program, horizon=10) if not isinstance(report.error, Deadlock)
    ]
    assert any(
        isinstance(error, ExceptionGroup) and repr(error.exceptions) == "(Boom('in cleanup'),)" for error in errors
    )


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_kept_in_a_report(interrupt: type[BaseException]) -> None:
    async def program() -> None:
        raise interrupt

    with pytest.raises(interrupt):
        simulate(program)


@pytest.mark.parametrize("error", [None, Boom, KeyboardInterrupt])
def test_the_scheduler_is_left_as_it_was(error: type[BaseException] | None) -> None:
    async def program() -> None:
        if error is not None:
            raise error

    before = (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r)
    try:
        simulate(program)
    except KeyboardInterrupt:
        assert error is KeyboardInterrupt
    assert (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r) == before


# --- deadlocks


def test_a_deadlock_is_reported_with_the_places_where_tasks_wait() -> None:
    async def philosopher(left: anyio.Lock, right: anyio.Lock) -> None:
        async with left:
            await anyio.sleep(1)
            async with right:
                pass

    async def program() -> None:
        one, two = anyio.Lock(), anyio.Lock()
        program = Program("table")
        program.actor("Plato", philosopher, one, two)
        program.actor("Kant", philosopher, two, one)
        await program.run()

    report = simulate(program, seed=4)
    assert isinstance(report.error, Deadlock)
    assert not report.cancelled
    text = str(report.error)
    assert text.startswith("seed 4: the program did not finish within 1e+09 virtual seconds; its tasks wait at\n")
    line = philosopher.__code__.co_firstlineno + 3
    for name in ("Plato", "Kant"):
        assert f"table: {name}: {__file__}:{line} in test_a_deadlock" in text
    assert len(text.splitlines()) == 3, "those that only wait for their children are left out"


def test_a_deadlock_behind_a_shield_ends_too() -> None:
    async def program() -> None:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope(shield=True):
                group.start_soon(anyio.sleep_forever)
                await anyio.Event().wait()

    assert isinstance(simulate(program, horizon=100).error, Deadlock)


def test_the_horizon() -> None:
    async def program(seconds: float) -> str:
        await anyio.sleep(seconds)
        return "done"

    assert simulate(program, 99, horizon=100).unwrap() == "done"
    report = simulate(program, 101, horizon=100)
    with pytest.raises(Deadlock, match="within 100 virtual seconds"):
        report.unwrap()
    assert report.value is None
    assert report.seconds == 100


@pytest.mark.parametrize("shield", [False, True])
def test_a_program_that_goes_on_and_on_is_a_deadlock_by_steps(shield: bool) -> None:
    async def program() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            with anyio.CancelScope(shield=shield):
                for _ in range(10**6):
                    await anyio.sleep(1)

    report = simulate(program, max_steps=100)
    with pytest.raises(Deadlock, match="after 100 task steps"):
        report.unwrap()
    assert 100 <= report.steps < 110


def test_what_a_deadlocked_program_raises_in_cleanup_is_the_cause() -> None:
    async def program() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise Boom("in cleanup")

    report = simulate(program)
    assert isinstance(report.error, Deadlock)
    assert isinstance(report.error.__cause__, Boom)


# --- cancelling


def test_cancel_at_strikes_at_every_step_once() -> None:
    async def program(log: list[int]) -> str:
        for number in range(5):
            log.append(number)
            await anyio.lowlevel.checkpoint()
        return "done"

    seen = []
    reports = []
    for step in range(1, 9):
        log: list[int] = []
        reports.append(simulate(program, log, cancel_at=step))
        seen.append(len(log))
    # What comes before the first await runs uncounted; from then on each await is one step, and each step cancels one await.
    assert seen == [1, 2, 3, 4, 5, 5, 5, 5]
    assert [report.cancelled for report in reports] == [True] * 5 + [False] * 3
    assert [report.value for report in reports[5:]] == ["done"] * 3
    assert {report.steps for report in reports[5:]} == {5}


def test_every_cancellation_ends_with_the_run_that_was_not_cancelled() -> None:
    async def program() -> str:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        return "done"

    reports = list(every_cancellation(program))
    assert [report.cancelled for report in reports] == [True] * 5 + [False]
    assert reports[-1].value == "done"
    assert [report.cancelled for report in every_cancellation(program, stride=2)] == [True] * 3 + [False]


def test_a_program_that_swallows_its_cancellation_and_returns() -> None:
    async def program() -> str:
        try:
            await anyio.sleep(10)
        except BaseException:  # noqa: BLE001  (on purpose)
            return "swallowed"
        return "slept"

    report = simulate(program, cancel_at=1)
    assert (report.value, report.cancelled) == ("swallowed", False)


def test_cleanup_runs_after_a_cancellation() -> None:
    async def program(log: list[float]) -> None:
        try:
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
                log.append(anyio.current_time())

    log: list[float] = []
    report = simulate(program, log, cancel_at=1)
    assert report.cancelled
    assert len(log) == 1


def test_schedules_are_the_seeds_in_turn() -> None:
    async def program() -> int:
        return 1

    assert [report.seed for report in schedules(program, count=3, first=5)] == [5, 6, 7]
    assert len(list(schedules(program))) == 200


# --- where it runs


def test_within_a_trio_program() -> None:
    async def inner() -> str:
        await anyio.sleep(3600)
        return "inner"

    async def outer() -> tuple[str, float]:
        value = simulate(inner, seed=1).unwrap()
        await anyio.sleep(1)
        return value, anyio.current_time()

    began_with = _run._r
    assert simulate(outer).unwrap() == ("inner", 1)
    assert _run._r is began_with

    async def real() -> None:
        assert simulate(outer).unwrap() == ("inner", 1)
        with pytest.raises(KeyboardInterrupt):
            simulate(interrupted)

    async def interrupted() -> None:
        raise KeyboardInterrupt

    trio.run(real)


@pytest.mark.anyio
async def test_within_a_test_that_runs_on_an_event_loop() -> None:
    async def program() -> float:
        await anyio.sleep(3600)
        return anyio.current_time()

    assert simulate(program).unwrap() == 3600
    await anyio.lowlevel.checkpoint()


@pytest.mark.trio
async def test_within_a_test_of_pytest_trio() -> None:
    async def program() -> float:
        await anyio.sleep(3600)
        return anyio.current_time()

    assert simulate(program).unwrap() == 3600
    await trio.lowlevel.checkpoint()
