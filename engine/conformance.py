"""Conformance suites: named checks of what a port promises, run against anybody's implementation.

A suite has a `Subject` (how to open what is under test, and what it declares not to do) and checks, async functions of it. `engine.backends.conformance`
and `envs.conformance` are two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import attrs


class NotConforming(AssertionError):
    """A promise is broken; the message says which."""


class Declares(Protocol):
    """What any suite's subject has."""

    @property
    def gaps(self) -> Mapping[str, str]:
        """Checks it does not pass by design: name of the check → why."""
        ...


S = TypeVar("S", bound=Declares)


@attrs.frozen
class Report:
    """How a subject did: names of checks, and for those not passed why."""

    passed: tuple[str, ...]
    gaps: Mapping[str, str]
    failed: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"passed  {name}" for name in self.passed]
        lines += [f"gap     {name}: {reason}" for name, reason in self.gaps.items()]
        lines += [f"FAILED  {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)


def require(condition: object, message: str) -> None:
    """Raises NotConforming with `message` unless the condition holds."""
    if not condition:
        raise NotConforming(message)


def declared_gap(checks: Sequence[Callable[[S], Awaitable[None]]], name: str, subject: S) -> str | None:
    """Why the subject declares that it does not pass the check of this name; None: it does not declare so.

    Raises ValueError when the subject declares a gap for a check that does not exist: a misspelt gap would hide nothing and tell nothing.
    """
    names = {known.__name__ for known in checks}
    unknown = sorted(subject.gaps.keys() - names)
    if unknown:
        raise ValueError(f"no such check: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    return subject.gaps.get(name)


def told(error: BaseException) -> str:
    """An error in a line: its class, its message, its notes; of several at once the first."""
    while isinstance(error, BaseExceptionGroup):
        for note in getattr(error, "__notes__", ()):
            error.exceptions[0].add_note(note)
        error = error.exceptions[0]
    notes = getattr(error, "__notes__", ())
    return f"{type(error).__name__}: {error}" + (f" ({'; '.join(notes)})" if notes else "")


async def run_checks(checks: Sequence[Callable[[S], Awaitable[None]]], subject: S) -> Report:
    """Runs every check that is not a declared gap, one after the other, and reports on all of them."""
    passed, gaps, failed = [], {}, {}
    for check in checks:
        name = check.__name__
        reason = declared_gap(checks, name, subject)
        if reason is not None:
            gaps[name] = reason
            continue
        try:
            await check(subject)
        except Exception as error:  # noqa: BLE001  (any error is a finding, and the other checks are to run)
            failed[name] = told(error)
        else:
            passed.append(name)
    return Report(tuple(passed), gaps, failed)
