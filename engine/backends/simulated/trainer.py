"""The simulated trainer's clock: one call after another, each for its own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import attrs

from engine.backends.simulated.distributions import ticks
from engine.backends.values import Datum

T = TypeVar("T")

_seconds = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))


@attrs.frozen
class TrainerModel:
    """How long the trainer takes, in seconds. forward_backward: `per_call` + datums · `per_datum` + positions · `per_token`."""

    per_call: float = _seconds
    per_datum: float = _seconds
    per_token: float = _seconds
    forward_share: float = 1 / 3
    """What a pass without gradients takes of one with them."""
    optim_step: float = _seconds
    snapshot: float = _seconds
    save: float = _seconds
    load: float = _seconds

    def passing(self, data: Sequence[Datum]) -> float:
        """Seconds of forward_backward on `data`."""
        seconds = self.per_call + self.per_datum * len(data)
        if self.per_token:
            seconds += self.per_token * sum(datum.model_input.length for datum in data)
        return seconds


class Timeline:
    """When the trainer will be free. Work submitted at t begins at max(t, busy_until)."""

    def __init__(self) -> None:
        self.busy_until = 0.0
        self.busy_seconds = 0.0
        """Work submitted so far."""

    def submit(self, seconds: float) -> tuple[float, float, float]:
        """Takes work of `seconds`: when it was submitted, begins and finishes."""
        now = anyio.current_time()
        began = max(now, self.busy_until)
        seconds = ticks(seconds)
        self.busy_until = began + seconds
        self.busy_seconds += seconds
        return now, began, self.busy_until


class Submitted(Generic[T]):
    """Work with its outcome known and its time to come."""

    def __init__(
        self,
        finish: float,
        value: T | None = None,
        *,
        error: BaseException | None = None,
        hangs: bool = False,
        on_delivery: Callable[[T], None] | None = None,
    ) -> None:
        self._finish = finish
        self._value = value
        self._error = error
        self._hangs = hangs
        self._on_delivery = on_delivery

    async def result(self) -> T:
        """Waits for the work and returns its result, or raises what it failed with. May be awaited again."""
        if self._hangs:
            await anyio.sleep_forever()
        if self._finish > anyio.current_time():
            await anyio.sleep_until(self._finish)
        else:
            await anyio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error
        if self._on_delivery is not None:
            self._on_delivery(self._value)  # type: ignore[arg-type]
            self._on_delivery = None
        return self._value  # type: ignore[return-value]
