"""Values as plain data, and the comparisons: what a solution gave beside what was expected."""

from __future__ import annotations

import base64
import collections
import decimal
import fractions
import json
from collections.abc import Callable
from typing import Any

BIG = 1 << 62
DEEPEST = 400
LONGEST_NUMBER = 400
MOST_ITEMS = 100_000
"""Of an iterator."""
VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))


class Unsendable(Exception):
    """A value that is no plain data."""


class Reference:
    """Stands for a function, a class or an object on the other side. Equal to nothing but itself."""

    def __init__(self, number: int) -> None:
        self.number = number


def encode(value: Any, handles: list[Any] | None = None, depth: int = 0) -> Any:  # noqa: PLR0911  (a table of kinds)
    """The value as JSON values; of a subclass, what it is as its base, whatever methods it has overridden.

    `handles` keeps what is no plain data, which goes as a reference. Raises Unsendable.
    """
    if depth > DEEPEST:
        raise Unsendable("a value that is nested too deeply")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -BIG < number < BIG else {"i": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [encode(item, handles, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"d": [[encode(k, handles, depth + 1), encode(v, handles, depth + 1)] for k, v in dict.items(value)]}
    kinds: tuple[tuple[type[Any], str], ...] = ((tuple, "t"), (set, "s"), (frozenset, "f"), (collections.deque, "e"))
    for kind, tag in kinds:
        if isinstance(value, kind):
            return {tag: [encode(item, handles, depth + 1) for item in kind.__iter__(value)]}
    return _encode_rare(value, handles, depth)


def _encode_rare(value: Any, handles: list[Any] | None, depth: int) -> Any:  # noqa: PLR0911  (likewise)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "y": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, range):
        return {"r": [value.start, value.stop, value.step]}
    if isinstance(value, fractions.Fraction):
        return {"q": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, decimal.Decimal):
        return {"m": str(value)}
    if isinstance(value, Reference):
        return {"o": value.number}
    if handles is None:
        raise Unsendable(f"a {type(value).__name__} cannot be passed to a solution")
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), handles, depth + 1)
    if isinstance(value, VIEWS) or hasattr(value, "__next__"):
        return {"n": [encode(item, handles, depth + 1) for _, item in zip(range(MOST_ITEMS), value, strict=False)]}
    handles.append(value)
    return {"o": len(handles) - 1}


def decode(value: Any, reference: Callable[[int], Any]) -> Any:  # noqa: PLR0911  (likewise)
    """The value that `encode` took apart; `reference(number)` gives what stands for a reference. Otherwise makes plain types alone."""
    if isinstance(value, list):
        return [decode(item, reference) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in _SEQUENCES:
        return _SEQUENCES[tag]([decode(item, reference) for item in content])
    if tag == "d":
        return {decode(key, reference): decode(item, reference) for key, item in content}
    if tag == "o":
        return reference(int(content))
    if tag == "q":
        return fractions.Fraction(decode(content[0], reference), decode(content[1], reference))
    return _SCALARS[tag](content)


_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "s": set,
    "f": frozenset,
    "e": collections.deque,
    "n": iter,
}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "i": lambda text: int(text, 16),
    "c": lambda parts: complex(*parts),
    "b": base64.b64decode,
    "y": lambda text: bytearray(base64.b64decode(text)),
    "r": lambda parts: range(*parts),
    "m": decimal.Decimal,
}


# ---- comparisons


def same_output(printed: str, expected: str, tolerance: float | None) -> bool:
    """Line by line, without spaces at their ends and empty lines around; numbers by value. `tolerance`, if any, is absolute and relative."""
    mine, theirs = _lines(printed), _lines(expected)
    return len(mine) == len(theirs) and all(
        a == b or _same_words(a.split(), b.split(), tolerance) for a, b in zip(mine, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_words(mine: list[str], theirs: list[str], tolerance: float | None) -> bool:
    return len(mine) == len(theirs) and all(
        a == b or _same_number(a, b, tolerance) for a, b in zip(mine, theirs, strict=True)
    )


def _same_number(mine: str, theirs: str, tolerance: float | None) -> bool:
    if len(mine) > LONGEST_NUMBER or len(theirs) > LONGEST_NUMBER:
        return False
    try:
        a, b = decimal.Decimal(mine), decimal.Decimal(theirs)
        if not (a.is_finite() and b.is_finite()):
            return False
        return a == b or (tolerance is not None and _close(float(a), float(b), tolerance))
    except (ArithmeticError, ValueError):
        return False


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(1.0, abs(b))


def same_value(value: Any, expected: Any, tolerance: float | None) -> bool:
    """Equal as JSON values: a tuple is a list, the keys of an object are strings, and `True` is not 1. `tolerance` as above, for floats."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(
            same_value(a, b, tolerance) for a, b in zip(value, expected, strict=True)
        )
    if isinstance(value, dict) and isinstance(expected, dict):
        keyed = {key if isinstance(key, str) else json.dumps(key): item for key, item in value.items()}
        return keyed.keys() == expected.keys() and all(
            same_value(keyed[key], expected[key], tolerance) for key in expected
        )
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return value == expected or (
            tolerance is not None
            and (isinstance(value, float) or isinstance(expected, float))
            and _close(value, expected, tolerance)
        )
    return type(value) is type(expected) and bool(value == expected)
