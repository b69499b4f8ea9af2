"""Distributions of seconds and of token counts: pure functions of two uniform numbers, so that a draw depends on nothing but its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import attrs

_TICK = 2.0**-20


def ticks(seconds: float) -> float:
    """`seconds` rounded to a multiple of 2⁻²⁰ s (about a microsecond).

    Sums and differences of such numbers are exact in floating point, so two events meant to fall together do so whatever the clock
    showed when they were started. Scheduling after a resume then equals scheduling without one.
    """
    return round(seconds / _TICK) * _TICK


class Distribution(Protocol):
    """Anything that turns two independent uniform numbers in (0, 1) into a non-negative draw."""

    def draw(self, u: float, v: float, /) -> float:
        """One draw."""
        ...


_not_negative = attrs.validators.ge(0.0)


@attrs.frozen
class Constant:
    """Always `value`."""

    value: float = attrs.field(default=0.0, validator=_not_negative)

    def draw(self, _u: float, _v: float, /) -> float:
        """`value`."""
        return self.value


@attrs.frozen
class Uniform:
    """Even between `low` and `high`."""

    low: float = attrs.field(validator=_not_negative)
    high: float

    def __attrs_post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError(f"Uniform: high ({self.high}) is below low ({self.low})")

    def draw(self, u: float, _v: float, /) -> float:
        """Linear in `u`."""
        return self.low + (self.high - self.low) * u


@attrs.frozen
class Exponential:
    """Exponential of the given mean: arrivals and failures without memory."""

    mean: float = attrs.field(validator=_not_negative)

    def draw(self, u: float, _v: float, /) -> float:
        """A value, by inversion of the distribution function."""
        return -self.mean * math.log(u)


@attrs.frozen
class LogNormal:
    """Log-normal with the given mean (of the values, before the cut), and `sigma` of their logarithm: the long tail of completions."""

    mean: float = attrs.field(validator=attrs.validators.gt(0.0))
    sigma: float = attrs.field(default=1.0, validator=_not_negative)
    maximum: float = math.inf
    """Larger draws are cut to this."""

    def draw(self, u: float, v: float, /) -> float:
        """A value, by the Box-Muller transform."""
        normal = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
        return min(self.maximum, self.mean * math.exp(self.sigma * normal - self.sigma * self.sigma / 2.0))


@attrs.frozen
class Empirical:
    """One of the given values, each as likely: latencies measured elsewhere."""

    values: Sequence[float] = attrs.field(converter=tuple, validator=attrs.validators.min_len(1))

    def draw(self, u: float, _v: float, /) -> float:
        """The value at `u` of the list's length."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
