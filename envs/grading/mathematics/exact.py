"""The exact value of a tree, as a quotient of two sums of monomials: with it equality is decided without a computer-algebra system."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from envs.grading.mathematics.polynomials import (
    MOST_BITS,
    ONE,
    OO,
    PI,
    ZERO,
    E,
    Exact,
    Fuel,
    I,
    Monomial,
    Monster,
    Poly,
    TooHard,
    check_size,
    constant,
    inverse,
    number,
    power,
    prime_factors,
    product,
    total,
    written,
)
from envs.grading.mathematics.trees import Call, Const, Num, Percent, Pow, Prod, Quot, Rows, Sum, Sym, Tree

LARGEST_FACTORIAL = 400
"""n of the largest n! that is computed."""


def exact(tree: Tree, fuel: Fuel) -> Exact:
    """The value of an expression. Raises TooHard, Monster."""
    fuel.burn(1)
    convert = _CONVERSIONS.get(type(tree))
    if convert is None:
        raise TooHard(f"a {type(tree).__name__} has no single value")
    return convert(tree, fuel)


def _of_number(tree: Num, fuel: Fuel) -> Exact:  # noqa: ARG001
    return number(check_size(tree.value))


def _of_symbol(tree: Sym, fuel: Fuel) -> Exact:  # noqa: ARG001
    return Exact({((f"s:{tree.name}", 1),): Fraction(1)})


def _of_constant(tree: Const, fuel: Fuel) -> Exact:  # noqa: ARG001
    return Exact({((f"c:{tree.name}", 1),): Fraction(1)})


def _of_sum(tree: Sum, fuel: Fuel) -> Exact:
    terms = [exact(term, fuel) for term in tree.terms]
    if any(atom == OO for term in terms for monomial in term.top for atom, _ in monomial):
        raise TooHard("a sum with infinity in it")
    result = terms[0]
    for term in terms[1:]:
        result = total(result, term, fuel)
    return result


def _of_product(tree: Prod, fuel: Fuel) -> Exact:
    result = exact(tree.factors[0], fuel)
    for factor in tree.factors[1:]:
        result = product(result, exact(factor, fuel), fuel)
    return result


def _of_quotient(tree: Quot, fuel: Fuel) -> Exact:
    return product(exact(tree.top, fuel), inverse(exact(tree.bottom, fuel), fuel), fuel)


def _of_percent(tree: Percent, fuel: Fuel) -> Exact:
    return product(exact(tree.of, fuel), number(Fraction(1, 100)), fuel)


def _of_power(tree: Pow, fuel: Fuel) -> Exact:
    base, exponent = exact(tree.base, fuel), exact(tree.exponent, fuel)
    times = exponent.rational
    if times is not None:
        return power(base, times, fuel)
    if base.rational not in (0, 1, -1) and _is_enormous(exponent):
        raise Monster("a tower of powers")
    if tree.base == Const("e"):
        turned = _turned(exponent, fuel)
        if turned is not None:
            return turned
    return _opaque("^", (base, exponent))


def _is_enormous(value: Exact) -> bool:
    """A whole number that was kept as powers of primes, because it has too many digits."""
    return (
        len(value.top) == 1
        and constant(value.bottom) is not None
        and all(
            atom.startswith("p:") and isinstance(exponent, int) for monomial in value.top for atom, exponent in monomial
        )
    )


def _turned(exponent: Exact, fuel: Fuel) -> Exact | None:
    """e^(iπr) for a simple r."""
    if len(exponent.top) != 1 or constant(exponent.bottom) is None:
        return None
    ((monomial, coefficient),) = exponent.top.items()
    if monomial != ((I, 1), (PI, 1)):
        return None
    turns = coefficient / constant(exponent.bottom)  # type: ignore[operator]  # looked at above
    real, imaginary = _sine(turns + Fraction(1, 2)), _sine(turns)
    if real is None or imaginary is None:
        return None
    return total(real, product(imaginary, Exact({((I, 1),): Fraction(1)}), fuel), fuel)


def _of_call(tree: Call, fuel: Fuel) -> Exact:
    if tree.name == "det":
        return _determinant(tree.args[0], fuel)
    args = tuple(exact(arg, fuel) for arg in tree.args)
    known = _FUNCTIONS.get(tree.name)
    found = known(args, fuel) if known is not None else None
    return _opaque(tree.name, args) if found is None else found


def _opaque(name: str, args: tuple[Exact, ...]) -> Exact:
    inside = ";".join(written(arg.top) + ("" if arg.bottom == ONE else f"/{written(arg.bottom)}") for arg in args)
    return Exact({((f"f:{name}({inside})", 1),): Fraction(1)})


def _whole(value: Exact) -> int | None:
    found = value.rational
    return found.numerator if found is not None and found.denominator == 1 else None


def _factorial(args: tuple[Exact, ...], fuel: Fuel) -> Exact | None:
    whole = _whole(args[0])
    if whole is None:
        return None
    if whole > LARGEST_FACTORIAL:
        raise Monster(f"the factorial of a number beyond {LARGEST_FACTORIAL}")
    if whole < 0:
        return None
    fuel.burn(whole // 8)
    return number(check_size(Fraction(math.factorial(whole))))


def _binomial(args: tuple[Exact, ...], fuel: Fuel) -> Exact | None:
    top, bottom = _whole(args[0]), _whole(args[1])
    if top is None or bottom is None or not 0 <= bottom <= top:
        return None
    least = min(bottom, top - bottom)
    if least * top.bit_length() > 2 * MOST_BITS:
        raise Monster("a binomial coefficient of large numbers")
    fuel.burn(least // 8)
    return number(check_size(Fraction(math.comb(top, bottom))))


def _of_rationals(function: Callable[..., Fraction | int]) -> Callable[[tuple[Exact, ...], Fuel], Exact | None]:
    def apply(args: tuple[Exact, ...], fuel: Fuel) -> Exact | None:  # noqa: ARG001
        values = [arg.rational for arg in args]
        if any(value is None for value in values):
            return None
        return number(function(*values))

    return apply


def _of_integers(function: Callable[..., int]) -> Callable[[tuple[Exact, ...], Fuel], Exact | None]:
    def apply(args: tuple[Exact, ...], fuel: Fuel) -> Exact | None:  # noqa: ARG001
        values = [_whole(arg) for arg in args]
        return None if any(value is None for value in values) else number(function(*values))

    return apply


def _logarithm(name: str) -> Callable[[tuple[Exact, ...], Fuel], Exact | None]:
    def apply(args: tuple[Exact, ...], fuel: Fuel) -> Exact | None:
        if len(args) == 2:  # to a base: ln a / ln b
            top, bottom = _log(args[0], "ln", fuel), _log(args[1], "ln", fuel)
            if top is None or bottom is None:
                return None
            return product(top, inverse(bottom, fuel), fuel)
        return _log(args[0], name, fuel)

    return apply


def _log(value: Exact, name: str, fuel: Fuel) -> Exact | None:
    """Of a product of powers of primes and of e: a sum of logarithms of primes."""
    if len(value.top) != 1 or constant(value.bottom) is None:
        return None
    ((monomial, coefficient),) = value.top.items()
    coefficient /= constant(value.bottom)  # type: ignore[operator]  # looked at above
    if coefficient <= 0 or any(atom != E and not atom.startswith("p:") for atom, _ in monomial):
        return None
    result: dict[Monomial, Fraction] = {}
    for prime, times in prime_factors(coefficient, fuel).items():
        result[(f"f:{name}({prime})", 1),] = Fraction(times)
    for atom, exponent in monomial:
        if atom == E and name != "ln":
            return None
        key: Monomial = () if atom == E else ((f"f:{name}({atom[2:]})", 1),)
        result[key] = result.get(key, Fraction(0)) + exponent
    return Exact({monomial: times for monomial, times in result.items() if times})


_SINES: Mapping[Fraction, Poly] = {
    Fraction(0): ZERO,
    Fraction(1, 6): {(): Fraction(1, 2)},
    Fraction(1, 4): {(("p:2", Fraction(1, 2)),): Fraction(1, 2)},
    Fraction(1, 3): {(("p:3", Fraction(1, 2)),): Fraction(1, 2)},
    Fraction(1, 2): ONE,
}


def _sine(half_turns: Fraction) -> Exact | None:
    """sin(π · half_turns), where it is a root of a small number."""
    turns = half_turns % 2
    sign = 1 if turns < 1 else -1
    turns %= 1
    found = _SINES.get(min(turns, 1 - turns))
    return None if found is None else Exact({monomial: sign * coefficient for monomial, coefficient in found.items()})


def _angle(value: Exact) -> Fraction | None:
    """r, for an angle of πr."""
    if not value.top:
        return Fraction(0)
    bottom = constant(value.bottom)
    if bottom is None or len(value.top) != 1:
        return None
    ((monomial, coefficient),) = value.top.items()
    return coefficient / bottom if monomial == ((PI, 1),) else None


def _trigonometric(name: str) -> Callable[[tuple[Exact, ...], Fuel], Exact | None]:
    def apply(args: tuple[Exact, ...], fuel: Fuel) -> Exact | None:
        angle = _angle(args[0])
        if angle is None:
            return None
        sine, cosine = _sine(angle), _sine(angle + Fraction(1, 2))
        if sine is None or cosine is None:
            return None
        if name in ("sin", "cos"):
            return sine if name == "sin" else cosine
        top, bottom = {
            "tan": (sine, cosine),
            "cot": (cosine, sine),
            "sec": (number(1), cosine),
            "csc": (number(1), sine),
        }[name]
        return product(top, inverse(bottom, fuel), fuel)

    return apply


def _determinant(tree: Tree, fuel: Fuel) -> Exact:
    if not isinstance(tree, Rows) or len(tree.rows) != len(tree.rows[0]) or len(tree.rows) > 5:
        raise TooHard("no determinant that is worked out here")
    return _laplace([[exact(cell, fuel) for cell in row] for row in tree.rows], fuel)


def _laplace(rows: list[list[Exact]], fuel: Fuel) -> Exact:
    if len(rows) == 1:
        return rows[0][0]
    result = number(0)
    for column, cell in enumerate(rows[0]):
        minor = _laplace([[*row[:column], *row[column + 1 :]] for row in rows[1:]], fuel)
        result = total(result, product(product(number((-1) ** column), cell, fuel), minor, fuel), fuel)
    return result


_FUNCTIONS: Mapping[str, Callable[[tuple[Exact, ...], Fuel], Exact | None]] = {
    "!": _factorial,
    "binom": _binomial,
    "abs": _of_rationals(abs),
    "floor": _of_rationals(math.floor),
    "ceil": _of_rationals(math.ceil),
    "sgn": _of_rationals(lambda value: (value > 0) - (value < 0)),
    "max": _of_rationals(max),
    "min": _of_rationals(min),
    "gcd": _of_integers(math.gcd),
    "lcm": _of_integers(math.lcm),
    "ln": _logarithm("ln"),
    "log": _logarithm("log"),
    **{name: _trigonometric(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
}
_CONVERSIONS: Mapping[type, Callable[[Any, Fuel], Exact]] = {
    Num: _of_number,
    Sym: _of_symbol,
    Const: _of_constant,
    Sum: _of_sum,
    Prod: _of_product,
    Quot: _of_quotient,
    Pow: _of_power,
    Call: _of_call,
    Percent: _of_percent,
}
