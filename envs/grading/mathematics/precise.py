"""Answers as numbers, to fifty digits: what agrees there, at several points of its variables, is taken to be equal. For workers: mpmath is imported here."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import mpmath

from envs.grading.mathematics.trees import Call, Const, Num, Percent, Pow, Prod, Quot, Sum, Sym, Tree, symbols

DIGITS = 50
GUARD = 40
"""Digits beyond those, for what rounding takes."""
POINTS = 8
"""Of variables' values; at half of them they may be negative."""
LEAST = 3
"""Points at which both must have a value."""

_ERRORS = (
    ArithmeticError,
    ValueError,
    KeyError,
    TypeError,
    NotImplementedError,
    mpmath.libmp.NoConvergence,
    mpmath.libmp.ComplexResult,
)


def agree(left: Tree, right: Tree) -> bool | None:
    """True: the two agree to fifty digits wherever both have a value. False: they differ at a point. None: there are not enough such points."""
    points = POINTS if symbols(left) | symbols(right) else 1
    seen = 0
    with mpmath.workdps(DIGITS + GUARD):
        for number in range(points):
            try:
                one, other = _value(left, number), _value(right, number)
            except _ERRORS:
                continue
            if not (mpmath.isfinite(one) and mpmath.isfinite(other)):
                continue
            seen += 1
            if not _same(one, other):
                return False
    return True if seen >= min(LEAST, points) else None


def _same(one: Any, other: Any) -> bool:
    return bool(abs(one - other) <= mpmath.mpf(10) ** -DIGITS * max(1, abs(one), abs(other)))


def _value(tree: Tree, number: int) -> Any:
    return _VALUES[type(tree)](tree, number)


def _variable(tree: Sym, number: int) -> Any:
    drawn = zlib.crc32(f"{number} {tree.name}".encode())
    value = mpmath.mpf(3) / 10 + mpmath.mpf(drawn) / 2**32 * 2 + mpmath.sqrt(2) / 100
    return -value if number >= POINTS // 2 and drawn % 2 else value


def _product(tree: Prod, number: int) -> Any:
    total: Any = mpmath.mpf(1)
    for factor in tree.factors:
        total *= _value(factor, number)
    return total


def _quotient(tree: Quot, number: int) -> Any:
    bottom = _value(tree.bottom, number)
    if abs(bottom) < mpmath.mpf(10) ** -DIGITS:
        raise ZeroDivisionError
    return _value(tree.top, number) / bottom


def _power(tree: Pow, number: int) -> Any:
    base, exponent = _value(tree.base, number), _value(tree.exponent, number)
    odd = (
        isinstance(tree.exponent, Quot)
        and isinstance(tree.exponent.bottom, Num)
        and tree.exponent.bottom.value.numerator % 2 == 1
    )
    if odd and mpmath.im(base) == 0 and mpmath.re(base) < 0 and mpmath.im(exponent) == 0 and exponent != int(exponent):
        return -((-base) ** exponent)  # ∛-8 is -2
    return base**exponent


def _call(tree: Call, number: int) -> Any:
    return _FUNCTIONS[tree.name](*(_value(arg, number) for arg in tree.args))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        name: getattr(mpmath, name)
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "floor", "ceil", "ln")
    },
    **{
        f"arc{name}": getattr(mpmath, f"a{name}")
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
    },
    "log": lambda x, base=10: mpmath.log(x) / mpmath.log(base),
    "abs": abs,
    "!": mpmath.factorial,
    "binom": mpmath.binomial,
    "max": max,
    "min": min,
    "sgn": mpmath.sign,
}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "pi": lambda: +mpmath.pi,
    "e": lambda: +mpmath.e,
    "i": lambda: mpmath.mpc(0, 1),
}
_VALUES: Mapping[type, Callable[[Any, int], Any]] = {
    Num: lambda tree, number: mpmath.mpf(tree.value.numerator) / tree.value.denominator,
    Sym: _variable,
    Const: lambda tree, number: _CONSTANTS[tree.name](),
    Sum: lambda tree, number: mpmath.fsum(_value(term, number) for term in tree.terms),
    Prod: _product,
    Quot: _quotient,
    Pow: _power,
    Call: _call,
    Percent: lambda tree, number: _value(tree.of, number) / 100,
}
