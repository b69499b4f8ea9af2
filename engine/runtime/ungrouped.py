"""A task group inside a function that its callers know nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ungrouped() -> Iterator[None]:
    """What one task of the block's task group failed with is raised as itself; where several failed, the first, with the others as its notes.

    For functions whose documented errors are plain ones. A group that holds a KeyboardInterrupt or the like goes through as it is.
    """
    try:
        yield
    except ExceptionGroup as group:
        first, *others = _leaves(group)
        for other in others:
            first.add_note(f"another task failed too: {type(other).__name__}: {other}")
        raise first from first.__cause__


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
