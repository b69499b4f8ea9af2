"""Vocabulary of answers: functions, Greek letters, units and numerals, by name."""

from __future__ import annotations

import re
from fractions import Fraction

GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma tau upsilon phi varphi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega pi Pi".split()
)
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot arcsec arccsc arcsinh arccosh arctanh asin acos atan sqrt cbrt log ln lg exp abs "
    "gcd lcm max min floor ceil binom det sgn sign".split()
)
UNITS_TOO = frozenset(("min", "sec"))
"""Functions that are units as well: 5 min."""
SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "sign": "sgn", "ceiling": "ceil"}

_PI = Fraction(3141592653589793238462643383279502884197, 10**39)
# Dimension, and how many of the dimension's base unit.
_UNITS: dict[str, tuple[str, Fraction]] = {}


def _unit(dimension: str, factor: Fraction | int | str, *names: str) -> None:
    for name in names:
        _UNITS[name] = (dimension, Fraction(factor))


for _prefix, _long, _power in (
    ("", "", 0),
    ("k", "kilo", 3),
    ("c", "centi", -2),
    ("m", "milli", -3),
    ("d", "deci", -1),
    ("µ", "micro", -6),
    ("n", "nano", -9),
):
    _factor = Fraction(10) ** _power
    _unit("length", _factor, f"{_prefix}m", f"{_long}meter", f"{_long}metre")
    _unit("mass", _factor, f"{_prefix}g", f"{_long}gram")
    _unit("volume", _factor / 1000, f"{_prefix}l", f"{_prefix}L", f"{_long}liter", f"{_long}litre")
    _unit("time", _factor, f"{_prefix}s", f"{_long}second")
    _unit("energy", _factor, f"{_prefix}J", f"{_long}joule")
    _unit("power", _factor, f"{_prefix}W", f"{_long}watt")
    _unit("force", _factor, f"{_prefix}N", f"{_long}newton")
    _unit("frequency", _factor, f"{_prefix}Hz", f"{_long}hertz")
_unit("length", "0.0254", "in", "inch", "inches")
_unit("length", "0.3048", "ft", "foot", "feet")
_unit("length", "0.9144", "yd", "yard")
_unit("length", "1609.344", "mi", "mile")
_unit("mass", "453.59237", "lb", "lbs", "pound")
_unit("mass", "28.349523125", "oz", "ounce")
_unit("mass", 10**6, "ton", "tonne")
_unit("time", 60, "min", "minute", "mins")
_unit("time", 3600, "h", "hr", "hrs", "hour")
_unit("time", 86400, "d", "day")
_unit("time", 7 * 86400, "wk", "week")
_unit("time", 1, "sec", "secs")
_unit("year", 1, "yr", "year", "yrs")
_unit("year", Fraction(1, 12), "month", "mo")
_unit("money", 1, "$", "dollar", "usd", "buck")
_unit("money", Fraction(1, 100), "cent", "¢")
_unit("euro", 1, "€", "euro", "eur")
_unit("pound sterling", 1, "£", "gbp")
_unit("yen", 1, "¥", "yen", "jpy")
_unit("rupee", 1, "rs", "rupee", "inr")
_unit("angle", 1, "°", "deg", "degree")
_unit("angle", 180 / _PI, "rad", "radian")
_unit("volume", Fraction("0.003785411784"), "gal", "gallon")
_unit("speed", Fraction("0.44704"), "mph")
_unit("speed", Fraction(10, 36), "kmh", "kmph", "kph")
_unit("temperature", 1, "°c", "celsius")
_unit("fahrenheit", 1, "°f", "fahrenheit")
_unit("temperature", 1, "kelvin")

_AREAS = {"length": "area", "area": "area"}
_VOLUMES = {"length": "volume"}
LETTERS_ALONE = frozenset("mglshdLJWN")
"""Units of one letter, which may be variables as well."""


def find_unit(name: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit: `cm`, `square meters`, `cm^2`, `m/s`, `miles per hour`. None: not known."""
    name = " ".join(name.replace(".", " ").split())
    top, per, bottom = re.sub(r"\s*\bper\b\s*|\s*/\s*", "/", name).partition("/")
    found = _power_of_unit(top)
    if not per or found is None:
        return found
    below = _power_of_unit(bottom)
    if below is None:
        return None
    dimension = "speed" if (found[0], below[0]) == ("length", "time") else f"{found[0]}/{below[0]}"
    return dimension, found[1] / below[1]


def _power_of_unit(name: str) -> tuple[str, Fraction] | None:
    name = name.strip()
    words = re.fullmatch(r"(square|sq|cubic|cu)\s+(.+)|(.+?)\s+(squared|cubed)", name)
    power = re.fullmatch(r"(.+?)\s*\^?\s*([23])", name)
    if words is not None:
        plain, exponent = words[2] or words[3], 2 if (words[1] or words[4]).startswith("sq") else 3
    elif power is not None:
        plain, exponent = power[1], int(power[2])
    else:
        plain, exponent = name, 1
    found = _one_unit(plain)
    if found is None or exponent == 1:
        return found
    if found[0] != "length":
        return f"{found[0]}^{exponent}", found[1] ** exponent
    return ("area" if exponent == 2 else "volume"), found[1] ** exponent


def _one_unit(name: str) -> tuple[str, Fraction] | None:
    for form in (name, name.lower()):
        for singular in (form, form.removesuffix("s"), form.removesuffix("es")):
            if singular in _UNITS:
                return _UNITS[singular]
    return None


NUMERALS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100}

COMMON = frozenset(
    "the is of that we to it are in by on at all for not no if as be so was he she they you his her its has had but than then yes".split()
)
"""Short words of English that nobody writes for a product of variables."""
_ARTICLES = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s+)?\(?([A-Za-z])[).:]?", re.IGNORECASE)
_COMMANDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mbox|mathbf|boldsymbol|operatorname|emph|textnormal)\s*\{([^{}]*)\}"
)
_SPACING = re.compile(r"\\[,;:! ]|\\(?:quad|qquad|left|right)(?![a-zA-Z])|~|\$")


def plain_words(text: str) -> str:
    r"""Text to be compared as text: no \text{}, case, articles, quotes or punctuation at its ends. A choice by its letter: `(B)`, `B.`, `option B` are b."""
    text = _SPACING.sub(" ", _COMMANDS.sub(r"\1", text))
    text = " ".join(text.split()).strip(" .,;:!?\"'`*_").strip()
    choice = _CHOICE.fullmatch(text)
    if choice is not None:
        return choice[1].casefold()
    text = _ARTICLES.sub("", text)
    return text.casefold()
