"""Exact arithmetic on sums of monomials, and on quotients of two of them.

    a monomial    3/2 · x² · π · √5        a coefficient, and powers of atoms: variables, constants, primes under a root, values of functions
    a value       (sum of monomials) / (sum of monomials)

Equal sums mean equal values; the other way round it holds for numbers without atoms. What costs too much is refused by a count of steps (`Fuel`), never by
a clock, and what is too large to be written out is recognised before it is computed (`Monster`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import attrs

from envs.grading.mathematics.trees import Tree

Monomial = tuple[tuple[str, Fraction | int], ...]
"""Atoms with their exponents, sorted by atom."""
Poly = Mapping[Monomial, Fraction]

MOST_BITS = 4096
"""Bits of a number that is computed."""
LARGEST_EXPONENT = 1 << 62
TRIAL_DIVISORS = 1000
"""Primes below this are looked for in numbers under a root."""

ONE: Poly = {(): Fraction(1)}
ZERO: Poly = {}
PI, E, I, OO = "c:pi", "c:e", "c:i", "c:oo"  # noqa: E741  (the imaginary unit)


class TooHard(Exception):
    """More steps than allowed, or nothing that this arithmetic knows. It says nothing about the answer."""


class Monster(Exception):
    """A number that is too large to be computed by anybody, or that there is not."""


@attrs.define
class Fuel:
    """Steps that are left."""

    left: int
    confirm: Callable[[Tree, Tree], bool | None] | None = None
    """Decides about two expressions that agree in double precision; None: nobody does."""

    def burn(self, steps: int) -> None:
        """Takes steps. Raises TooHard when there are not so many."""
        self.left -= steps
        if self.left < 0:
            raise TooHard("it takes too many steps")


@attrs.frozen
class Exact:
    """A value: top / bottom."""

    top: Poly
    bottom: Poly = attrs.field(factory=lambda: ONE)

    @property
    def rational(self) -> Fraction | None:
        """The number, where it is one without atoms."""
        top, bottom = constant(self.top), constant(self.bottom)
        return None if top is None or bottom is None else top / bottom

    @property
    def infinite(self) -> bool:
        """Whether it is plus or minus infinity."""
        return any(atom == OO for monomial in self.top for atom, _ in monomial)

    @property
    def is_linear(self) -> bool:
        """Whether it is a sum of variables with numbers before them, and a number."""
        return constant(self.bottom) is not None and all(
            sum(exponent for _, exponent in monomial) <= 1 and all(atom.startswith("s:") for atom, _ in monomial)
            for monomial in self.top
        )


def constant(poly: Poly) -> Fraction | None:
    """The number that a sum is, if it has no atoms."""
    if not poly:
        return Fraction(0)
    if len(poly) == 1:
        ((monomial, coefficient),) = poly.items()
        if not monomial:
            return coefficient
    return None


def number(value: Fraction | int) -> Exact:
    """A number as a value."""
    return Exact({(): Fraction(value)} if value else ZERO)


def same_value(left: Exact, right: Exact, fuel: Fuel) -> bool:
    """Whether the two are equal by arithmetic: left.top · right.bottom = right.top · left.bottom."""
    if left.bottom is right.bottom or left.bottom == right.bottom:
        return left.top == right.top
    return _multiply(left.top, right.bottom, fuel) == _multiply(right.top, left.bottom, fuel)


def differ_as_numbers(left: Exact, right: Exact) -> bool:
    """Whether both are products of powers of primes, which are the same only when written the same."""

    def is_prime_power(value: Exact) -> bool:
        return (
            constant(value.bottom) is not None
            and len(value.top) <= 1
            and all(atom.startswith("p:") for monomial in value.top for atom, _ in monomial)
        )

    return is_prime_power(left) and is_prime_power(right) and left != right


def ratio(left: Exact, right: Exact) -> Fraction | None:
    """c, where left = c · right for a number c that is not 0; None where there is no such number, or where it takes more to see it."""
    if (
        constant(left.bottom) is None
        or constant(right.bottom) is None
        or left.top.keys() != right.top.keys()
        or not left.top
    ):
        return None
    quotients = {left.top[monomial] / right.top[monomial] for monomial in left.top}
    if len(quotients) != 1:
        return None
    return quotients.pop() / constant(left.bottom) * constant(right.bottom)  # type: ignore[operator]  # both were looked at


def check_size(value: Fraction) -> Fraction:
    """The number itself. Raises Monster for one of too many bits."""
    if value.numerator.bit_length() > MOST_BITS or value.denominator.bit_length() > MOST_BITS:
        raise Monster(f"a number of more than {MOST_BITS} bits")
    return value


def _add(left: Poly, right: Poly, fuel: Fuel) -> Poly:
    fuel.burn(len(left) + len(right))
    summed = dict(left)
    for monomial, coefficient in right.items():
        new = summed.get(monomial, 0) + coefficient
        if new:
            summed[monomial] = check_size(Fraction(new))
        else:
            summed.pop(monomial, None)
    return summed


def _multiply(left: Poly, right: Poly, fuel: Fuel) -> Poly:
    if left is ONE:
        return right
    if right is ONE:
        return left
    fuel.burn(2 * len(left) * len(right) + 1)
    summed: dict[Monomial, Fraction] = {}
    for one, a in left.items():
        for other, b in right.items():
            monomial, factor = _join(one, other, fuel)
            new = summed.get(monomial, 0) + a * b * factor
            if new:
                summed[monomial] = check_size(new)
            else:
                summed.pop(monomial, None)
    return summed


def _join(left: Monomial, right: Monomial, fuel: Fuel) -> tuple[Monomial, Fraction]:
    """The product of two monomials, and the number that falls out of it: √2 · √2 = 2, i · i = -1."""
    if not left or not right:
        return left or right, Fraction(1)
    powers = dict(left)
    for atom, exponent in right:
        powers[atom] = powers.get(atom, 0) + exponent
    fuel.burn(len(powers))
    return _settled(powers)


def _settled(powers: dict[str, Any]) -> tuple[Monomial, Fraction]:
    factor = Fraction(1)
    found = []
    for atom, exponent in powers.items():
        if atom == I:
            exponent %= 4  # noqa: PLW2901
            if exponent >= 2:
                factor, exponent = -factor, exponent - 2  # noqa: PLW2901
        elif atom.startswith("p:"):
            whole = math.floor(exponent)
            base = int(atom[2:])
            if abs(whole) * base.bit_length() <= MOST_BITS:
                factor *= Fraction(base) ** whole
                exponent -= whole  # noqa: PLW2901
        if exponent:
            found.append(
                (atom, exponent if not isinstance(exponent, Fraction) or exponent.denominator > 1 else int(exponent))
            )
    found.sort()
    return tuple(found), factor


def product(left: Exact, right: Exact, fuel: Fuel) -> Exact:
    return Exact(_multiply(left.top, right.top, fuel), _multiply(left.bottom, right.bottom, fuel))


def total(left: Exact, right: Exact, fuel: Fuel) -> Exact:
    if left.bottom is right.bottom or left.bottom == right.bottom:
        return Exact(_add(left.top, right.top, fuel), left.bottom)
    top = _add(_multiply(left.top, right.bottom, fuel), _multiply(right.top, left.bottom, fuel), fuel)
    return Exact(top, _multiply(left.bottom, right.bottom, fuel))


def inverse(value: Exact, fuel: Fuel) -> Exact:
    if not value.top:
        raise Monster("a division by zero")
    if len(value.top) == 1:  # a single monomial goes up, so that 1/√2 is √2/2
        ((monomial, coefficient),) = value.top.items()
        inverted, factor = _settled({atom: -exponent for atom, exponent in monomial})
        flipped: Poly = {inverted: check_size(factor / coefficient)}
        return Exact(_multiply(flipped, value.bottom, fuel))
    return Exact(value.bottom, value.top)


def power(base: Exact, exponent: Fraction, fuel: Fuel) -> Exact:
    if exponent.denominator > 1:
        return _root(base, exponent, fuel)
    times = exponent.numerator
    if abs(times) > LARGEST_EXPONENT:
        raise Monster("an exponent beyond 2^62")
    if times < 0:
        return power(inverse(base, fuel), Fraction(-times), fuel)
    if len(base.top) <= 1 and len(base.bottom) == 1:
        return Exact(_monomial_power(base.top, times, fuel), _monomial_power(base.bottom, times, fuel))
    result = Exact(ONE)
    while times:
        fuel.burn(8)
        if times & 1:
            result = product(result, base, fuel)
        times >>= 1
        if times:
            base = product(base, base, fuel)
    return result


def _monomial_power(poly: Poly, times: int, fuel: Fuel) -> Poly:
    if not poly:
        return ONE if times == 0 else ZERO
    ((monomial, coefficient),) = poly.items()
    bits = max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length())
    powers: dict[str, Any] = {atom: exponent * times for atom, exponent in monomial}
    if abs(coefficient) == 1 or bits * times <= MOST_BITS:
        settled, factor = _settled(powers)
        return {settled: check_size(coefficient**times * factor)}
    # Too many digits to write out: as powers of primes, which compare as well.
    for prime, exponent in prime_factors(coefficient, fuel).items():
        powers[f"p:{prime}"] = powers.get(f"p:{prime}", 0) + exponent * times
    settled, factor = _settled(powers)
    return {settled: factor * (-1 if coefficient < 0 and times % 2 else 1)}


def _root(base: Exact, exponent: Fraction, fuel: Fuel) -> Exact:
    if len(base.bottom) != 1 or base.bottom.keys() != {()}:
        raise TooHard("a root of a quotient")
    if not base.top:
        return number(0)
    if len(base.top) > 1:
        return _root_of_sum(base.top, exponent, fuel)
    ((monomial, coefficient),) = base.top.items()
    coefficient /= base.bottom[()]
    powers: dict[str, Any] = {}
    if coefficient < 0:
        if exponent.denominator == 2:
            powers[I] = exponent.numerator
        elif exponent.denominator % 2 == 0:
            raise TooHard("an even root of a negative number")
    sign = -1 if coefficient < 0 and exponent.denominator % 2 and exponent.numerator % 2 else 1  # ∛-8 is -2
    for prime, times in prime_factors(coefficient, fuel).items():
        powers[f"p:{prime}"] = times * exponent
    for atom, degree in monomial:
        if degree == 1 or atom[:2] in ("p:", "c:"):  # √(x²) is |x|, not x
            powers[atom] = powers.get(atom, 0) + degree * exponent
        else:
            name = f"({written({((atom, degree),): Fraction(1)})})"
            powers[name] = powers.get(name, 0) + exponent
    settled, factor = _settled(powers)
    return Exact({settled: check_size(sign * factor)})


def _root_of_sum(top: Poly, exponent: Fraction, fuel: Fuel) -> Exact:
    content = _content(top)
    monic = {monomial: coefficient / content for monomial, coefficient in top.items()}
    outside = _root(number(content), exponent, fuel)
    fuel.burn(4 * len(top))
    return product(outside, Exact({((f"({written(monic)})", exponent),): Fraction(1)}), fuel)


def _content(poly: Poly) -> Fraction:
    """The positive number that can be taken out of a sum."""
    top = math.gcd(*(coefficient.numerator for coefficient in poly.values()))
    bottom = math.lcm(*(coefficient.denominator for coefficient in poly.values()))
    return Fraction(top, bottom)


def written(poly: Poly) -> str:
    """The same text for the same sum."""
    return "+".join(f"{coefficient}*{monomial}" for monomial, coefficient in sorted(poly.items()))


def prime_factors(value: Fraction, fuel: Fuel) -> dict[int, int]:
    """Prime factors with their exponents, as far as trial division finds them; what is left over counts as one."""
    found: dict[int, int] = {}
    for rest, sign in ((abs(value.numerator), 1), (value.denominator, -1)):
        _factor_into(found, rest, sign, fuel)
    return found


def _factor_into(found: dict[int, int], rest: int, sign: int, fuel: Fuel) -> None:
    divisor = 2
    while rest > 1 and divisor < TRIAL_DIVISORS and divisor * divisor <= rest:
        fuel.burn(1)
        while rest % divisor == 0:
            fuel.burn(1)
            rest //= divisor
            found[divisor] = found.get(divisor, 0) + sign
        divisor += 1 if divisor == 2 else 2
    if rest == 1:
        return
    for degree in (2, 3, 5):  # a square of a large prime
        whole = round(rest ** (1 / degree)) if rest.bit_length() < 1000 else 0
        if degree == 2:
            whole = math.isqrt(rest)
        if whole > 1 and whole**degree == rest:
            found[whole] = found.get(whole, 0) + sign * degree
            return
    found[rest] = found.get(rest, 0) + sign
