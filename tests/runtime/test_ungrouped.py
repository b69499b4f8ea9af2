"""Errors of hidden task groups."""

from __future__ import annotations

import anyio
import pytest

from engine.runtime.ungrouped import ungrouped

pytestmark = pytest.mark.anyio


async def fail(error: BaseException) -> None:
    raise error


async def wait_and_fail(error: Exception) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        raise error


async def test_one_failure_is_raised_as_itself_with_its_cause() -> None:
    error = ValueError("x")
    error.__cause__ = KeyError("y")
    with pytest.raises(ValueError, match="x") as raised, ungrouped():
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(anyio.sleep_forever)
            inner.start_soon(fail, error)
    assert raised.value is error
    assert isinstance(error.__cause__, KeyError)


async def test_further_failures_are_notes() -> None:
    with pytest.raises(ValueError, match="first") as raised, ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_and_fail, TypeError("second"))
            await anyio.lowlevel.checkpoint()
            raise ValueError("first")
    assert raised.value.__notes__ == ["another task failed too: TypeError: second"]


class Interruption(BaseException):
    """As KeyboardInterrupt is one."""


async def test_an_interruption_is_not_unwrapped() -> None:
    with pytest.raises(BaseExceptionGroup) as raised, ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, Interruption())
    assert isinstance(raised.value.exceptions[0], Interruption)


async def test_nothing_happens_without_a_failure() -> None:
    with ungrouped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.lowlevel.checkpoint)
