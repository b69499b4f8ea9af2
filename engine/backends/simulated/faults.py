"""Failures on purpose: by chance that depends on the seed alone, or by plan."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import attrs

from engine.backends.errors import TransientError
from engine.backends.simulated.model import unit

Call = Literal[
    "sample", "compute_logprobs", "forward", "forward_backward", "optim_step",
    "snapshot", "restart", "save_state", "load_state", "save_snapshot", "load_snapshot",
]  # fmt: skip


@attrs.frozen
class Hang:
    """The call does not return until it is cancelled."""


Error = Callable[[], BaseException]
"""Makes what is raised; an exception class serves when it needs no argument."""


@attrs.frozen
class Fault:
    """The `nth` call (from 1, counted since this backend was made), and the `times` - 1 after it, fail."""

    call: Call
    nth: int = attrs.field(validator=attrs.validators.ge(1))
    error: Error | BaseException | Hang
    """An exception, something that makes one, or `Hang()`."""
    times: float = 1
    """`math.inf`: from then on always."""
    at_submission: bool = False
    """Raise where the call is made rather than from `Pending.result()`; sampling calls have only one place."""
    after: float = 0.0
    """Seconds before a failing sampling call raises."""

    def hits(self, count: int) -> bool:
        """Whether call number `count` (from 1) is to fail."""
        return self.nth <= count < self.nth + self.times


@attrs.frozen
class Failures:
    """Which calls fail. Fails none by default."""

    rates: Mapping[Call, float] = attrs.field(factory=dict)
    """Probability that a call raises TransientError. For `sample` it is drawn from the request's seed, its prompt and how often the
    same request was made before; for others from the number of the call."""
    plan: tuple[Fault, ...] = attrs.field(default=(), converter=tuple)
    after: float = 0.0
    """Seconds before a sampling request that fails by chance does so."""
    seed: int = 0

    def __bool__(self) -> bool:
        return bool(self.rates or self.plan)


@attrs.frozen
class Failing:
    """What a call is to fail with."""

    error: BaseException | None
    """None: it hangs."""
    at_submission: bool
    after: float


class Injector:
    """Counts calls and says which of them fail."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._counts: Counter[Call] = Counter()
        self._attempts: Counter[int] = Counter()

    def next(self, call: Call, identity: int | None = None) -> Failing | None:
        """Counts a call; `identity` stands for what is asked where the order of calls is not to matter."""
        self._counts[call] += 1
        count = self._counts[call]
        for fault in self._failures.plan:
            if fault.call == call and fault.hits(count):
                return Failing(_made(fault.error), fault.at_submission, fault.after)
        rate = self._failures.rates.get(call, 0.0)
        if rate > 0.0 and self._chance(call, count, identity) < rate:
            return Failing(TransientError(f"injected failure of {call} (call {count})"), False, self._failures.after)
        return None

    def _chance(self, call: Call, count: int, identity: int | None) -> float:
        place = zlib.crc32(call.encode()) + (self._failures.seed << 32)
        if identity is None:
            return unit(place, count)
        attempt = self._attempts[identity]
        self._attempts[identity] += 1
        return unit(place ^ identity, attempt)


def _made(error: Error | BaseException | Hang) -> BaseException | None:
    if isinstance(error, Hang):
        return None
    return error if isinstance(error, BaseException) else error()


ALWAYS = math.inf
