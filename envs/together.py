"""Calls made concurrently: all of them, or none.

Nothing is left running when one of these returns or raises.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import anyio

T = TypeVar("T")


class Runner(Protocol):
    """Runs calls concurrently; their results in order."""

    async def __call__(self, functions: Sequence[Callable[[], Awaitable[T]]], /) -> list[T]: ...


def or_error(function: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T | Exception]]:
    """The call, giving what it raised instead of raising it."""

    async def attempt() -> T | Exception:
        try:
            return await function()
        except Exception as error:  # noqa: BLE001  (the caller asked for it)
            return error

    return attempt


async def quickly(functions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """As `together`, for calls that seldom wait: one after another while none does, the others all at once as soon as one does.

    A task costs about 20 µs, which is more than many an env's whole step.
    """
    if len(functions) < 2:
        return [await function() for function in functions]
    results: list[T | None] = [None] * len(functions)
    begun = 0
    with _alone_if_alone():
        async with anyio.create_task_group() as group:

            async def store(index: int) -> None:
                results[index] = await functions[index]()

            def begin_others() -> None:
                nonlocal begun
                for index in range(begun, len(functions)):
                    group.start_soon(store, index)
                begun = len(functions)

            while begun < len(functions):
                index = begun
                begun += 1
                results[index] = await _noticing(functions[index](), begin_others)
    return results  # type: ignore[return-value]  # every call has returned


async def together(functions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Runs all at once; the first failure cancels the others and is raised when they have ended, alone if it was alone."""
    if len(functions) < 2:
        return [await function() for function in functions]
    results: list[T | None] = [None] * len(functions)

    async def store(index: int) -> None:
        results[index] = await functions[index]()

    with _alone_if_alone():
        async with anyio.create_task_group() as group:
            for index in range(len(functions)):
                group.start_soon(store, index)
    return results  # type: ignore[return-value]  # every store has run


async def alike(functions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """As `together`, for calls that fail for like reasons: of errors that come at once, the first is raised, never a group."""
    try:
        return await together(functions)
    except ExceptionGroup as errors:
        error = single(errors)
        raise error from error.__cause__


@types.coroutine
def _noticing(awaitable: Awaitable[T], waits: Callable[[], None]) -> Generator[Any, Any, T]:
    """Awaits; calls `waits()` just before the awaitable waits for the first time, if it ever does."""
    steps: Any = awaitable.__await__()
    try:
        trap = steps.send(None)
        waits()
        while True:
            try:
                answer = yield trap
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001  (handed on to whom it was meant for)
                trap = steps.throw(error)
            else:
                trap = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


@contextmanager
def _alone_if_alone() -> Iterator[None]:
    """An exception group of one says less than its one exception."""
    try:
        yield
    except ExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        raise


def single(error: Exception) -> Exception:
    """The first error behind groups of errors."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
