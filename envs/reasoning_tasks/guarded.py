"""Arithmetic in Python's notation without evaluating it: what the tasks' own scorers use in place of `eval` and `sympy.parse_expr` on what a model has written.

Text is parsed into a syntax tree, and the tree is walked: numbers, texts, lists and arithmetic, and for formulas names and a few functions. Anything else is refused.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LONGEST = 10_000
"""Characters of a text that is parsed."""
MOST_BITS = 20_000
"""Bits of a number that is computed."""


class Refused(ValueError):
    """The text is not arithmetic, or asks for too much of it."""


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_FUNCTIONS = frozenset("sin cos tan cot sec csc asin acos atan sinh cosh tanh exp log ln sqrt Abs Rational".split())
_CONSTANTS = frozenset(("pi", "E"))


def _parsed(text: object) -> ast.expr:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise Refused("a text of at most 10,000 characters is parsed")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"no arithmetic: {type(error).__name__}") from None


def literal(text: object, *_: object) -> Any:
    """Numbers, texts, lists of them, and arithmetic on numbers. Raises Refused."""
    return _value(_parsed(text))


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value) if value is None or isinstance(value, int | float | str):
            return value
        case ast.List(items):
            return [_value(item) for item in items]
        case ast.Tuple(items):
            return tuple(_value(item) for item in items)
        case ast.UnaryOp(sign, inner) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_number(inner))
        case ast.BinOp(left, sign, right):
            return _binary(type(sign), _number(left), _number(right))
        case _:
            raise Refused(f"{type(node).__name__} is no arithmetic")


def _number(node: ast.AST) -> Any:
    value = _value(node)
    if not isinstance(value, int | float):
        raise Refused("arithmetic is done with numbers")
    return value


def _binary(sign: type[ast.operator], left: Any, right: Any) -> Any:
    if sign is ast.Pow:
        if isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > MOST_BITS:
            raise Refused("too large a power")
        return left**right
    if sign in (ast.LShift, ast.RShift):
        if not 0 <= right <= MOST_BITS:
            raise Refused("too large a shift")
        return left << right if sign is ast.LShift else left >> right
    if sign not in _BINARY:
        raise Refused(f"{sign.__name__} is no arithmetic")
    if (
        sign is ast.Mult
        and isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() + right.bit_length() > MOST_BITS
    ):
        raise Refused("too large a product")
    return _BINARY[sign](left, right)


def formula(text: object, local_dict: Mapping[str, Any] | None = None, **_: object) -> Any:
    """A sympy expression: numbers, arithmetic, names, and a few functions of them. Raises Refused."""
    return _expression(_parsed(text), local_dict or {})


def _expression(node: ast.AST, names: Mapping[str, Any]) -> Any:  # noqa: PLR0911  (one line for each kind of node)
    import sympy

    match node:
        case ast.Constant(value) if isinstance(value, int) and not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Constant(value) if isinstance(value, float):
            return sympy.Float(value)
        case ast.Name(name) if name in names:
            return names[name]
        case ast.Name(name) if name in _CONSTANTS:
            return getattr(sympy, name)
        case ast.Name(name) if name.isidentifier() and len(name) <= 20 and "_" not in name:
            return sympy.Symbol(name)
        case ast.UnaryOp(ast.USub(), inner):
            return -_expression(inner, names)
        case ast.UnaryOp(ast.UAdd(), inner):
            return _expression(inner, names)
        case ast.BinOp(left, sign, right):
            return _combined(type(sign), _expression(left, names), _expression(right, names))
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS and 1 <= len(args) <= 2:
            return getattr(sympy, name)(*(_expression(arg, names) for arg in args))
        case _:
            raise Refused(f"{type(node).__name__} is no formula")


def _combined(sign: type[ast.operator], left: Any, right: Any) -> Any:
    if sign is ast.Pow:
        if left.is_number and right.is_number and (not right.is_Rational or abs(right) > 1000):
            raise Refused("too large a power")
        return left**right
    if sign not in (ast.Add, ast.Sub, ast.Mult, ast.Div):
        raise Refused(f"{sign.__name__} is no formula")
    return _BINARY[sign](left, right)


@contextmanager
def nothing_evaluated() -> Iterator[None]:
    """While it lasts, the tasks' modules and sympy have these functions where they would evaluate text."""
    import sympy
    from sympy.core.sympify import converter

    modules = [
        module for name, module in sys.modules.items() if name.startswith("reasoning_gym.") and module is not None
    ]
    readers = [module for module in modules if getattr(module, "parse_expr", None) is sympy.parse_expr]
    kept, kept_converter = sympy.parse_expr, converter.get(str)
    for module in modules:
        module.__dict__["eval"] = literal
    for module in (*readers, sympy):
        module.__dict__["parse_expr"] = formula
    converter[str] = formula
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("eval", None)
        for module in (*readers, sympy):
            module.__dict__["parse_expr"] = kept
        if kept_converter is None:
            del converter[str]
        else:
            converter[str] = kept_converter
