"""Answers as numbers: an expression's value at a few points, in double precision. What differs there is different; what agrees may be equal."""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from envs.grading.mathematics.trees import Call, Const, Num, Percent, Pow, Prod, Quot, Sum, Sym, Tree

POINTS = 6
"""Of variables' values: three where all are positive, three where they may be negative; one of each where they are small."""
MARGIN = 1e-9
"""Difference from which two values are different, relative to the largest number that came up on the way to them."""

_ERRORS = (ArithmeticError, ValueError, KeyError, TypeError)
"""Division by zero, overflow, a logarithm of 0, a function that is not known."""


@attrs.define
class _Point:
    """Values of the variables, and the largest number on the way so far."""

    number: int
    largest: float = 1.0

    def variable(self, name: str) -> complex:
        """Between 0.3 and 2.9, from the name and the point's number; at the later points of either sign."""
        drawn = zlib.crc32(f"{self.number}:{name}".encode()) / 2**32
        value = 0.3 + 2.6 * drawn if self.number % 3 else 0.03 + 0.2 * drawn
        return complex(-value if self.number >= POINTS // 2 and int(drawn * 1024) % 2 else value)


def value_at(tree: Tree, point: _Point) -> complex:
    """The value there. Raises ArithmeticError, ValueError, KeyError or TypeError where there is none."""
    found: complex = _VALUES[type(tree)](tree, point)
    size = abs(found)
    point.largest = max(point.largest, size)
    return found


def real_value(tree: Tree) -> float | None:
    """Of an expression without variables; None where it has no real one, or where double precision has not got it."""
    point = _Point(0)
    try:
        value = value_at(tree, point)
    except _ERRORS:
        return None
    if (
        not cmath.isfinite(value)
        or abs(value.imag) > MARGIN * point.largest
        or point.largest * 1e-16 > 1e-9 * max(abs(value), 1e-3)
    ):
        return None
    return value.real


def agree(left: Tree, right: Tree) -> bool | None:
    """False: the two differ at a point. True: they agree at every point where both have a value. None: there is no such point."""
    seen = False
    for number in range(POINTS):
        point = _Point(number)
        try:
            one, other = value_at(left, point), value_at(right, point)
        except _ERRORS:
            continue
        if not (cmath.isfinite(one) and cmath.isfinite(other)) or point.largest > 1e150:
            continue
        seen = True
        if abs(one - other) > MARGIN * point.largest and abs(one - other) > MARGIN * max(abs(one), abs(other)):
            return False
    return True if seen else None


def _number(tree: Num, point: _Point) -> complex:  # noqa: ARG001
    return complex(tree.value)


def _sum(tree: Sum, point: _Point) -> complex:
    return sum((value_at(term, point) for term in tree.terms), 0j)


def _product(tree: Prod, point: _Point) -> complex:
    total = 1 + 0j
    for factor in tree.factors:
        total *= value_at(factor, point)
    return total


def _quotient(tree: Quot, point: _Point) -> complex:
    bottom = value_at(tree.bottom, point)
    if abs(bottom) < 1e-12 * point.largest:  # zero but for rounding, perhaps
        raise ZeroDivisionError
    return value_at(tree.top, point) / bottom


def _power(tree: Pow, point: _Point) -> complex:
    base, exponent = value_at(tree.base, point), value_at(tree.exponent, point)
    if exponent.imag == 0 and base.imag == 0:
        if base.real > 0 or exponent.real.is_integer():
            return complex(base.real**exponent.real)
        if _is_odd_root(tree.exponent):
            return complex(-((-base.real) ** exponent.real))
    return base**exponent


def _is_odd_root(exponent: Tree) -> bool:
    """1/3, 1/5, ...: whose root of a negative number is a negative one, as people have it."""
    if not (isinstance(exponent, Quot) and isinstance(exponent.bottom, Num) and isinstance(exponent.top, Num)):
        return False
    return (
        exponent.top.value == 1 and exponent.bottom.value.denominator == 1 and exponent.bottom.value.numerator % 2 == 1
    )


def _call(tree: Call, point: _Point) -> complex:
    return complex(_FUNCTIONS[tree.name](*(value_at(arg, point) for arg in tree.args)))


def _real(value: complex) -> float:
    if abs(value.imag) > 1e-12 * max(1.0, abs(value.real)):
        raise ValueError("not a real number")
    return value.real


def _stepwise(function: Callable[[float], float]) -> Callable[[complex], float]:
    def apply(value: complex) -> float:
        real = _real(value)
        if abs(real - round(real)) < 1e-9 and not float(real).is_integer():
            raise ValueError("on a step, but for rounding")
        return function(real)

    return apply


def _factorial(value: complex) -> float:
    real = _real(value)
    if real < 0:
        raise ValueError("no factorial of a negative number")
    return math.gamma(real + 1)


def _binomial(top: complex, bottom: complex) -> float:
    n, k = _real(top), _real(bottom)
    return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "coth": lambda x: 1 / cmath.tanh(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "arcsinh": cmath.asinh,
    "arccosh": cmath.acosh,
    "arctanh": cmath.atanh,
    "ln": cmath.log,
    "log": lambda x, base=10: cmath.log(x) / cmath.log(base),
    "abs": abs,
    "floor": _stepwise(math.floor),
    "ceil": _stepwise(math.ceil),
    "!": _factorial,
    "binom": _binomial,
    "max": lambda *values: max(_real(value) for value in values),
    "min": lambda *values: min(_real(value) for value in values),
}
_CONSTANTS: Mapping[str, complex] = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_VALUES: Mapping[type, Callable[[Any, _Point], complex]] = {
    Num: _number,
    Sym: lambda tree, point: point.variable(tree.name),
    Const: lambda tree, point: _CONSTANTS[tree.name],
    Sum: _sum,
    Prod: _product,
    Quot: _quotient,
    Pow: _power,
    Call: _call,
    Percent: lambda tree, point: value_at(tree.of, point) / 100,
}
