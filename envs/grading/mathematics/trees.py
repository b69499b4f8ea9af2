"""What a mathematical answer says, as a tree: what `reading` makes of text, and `exact`, `numeric` and `symbolic` compare."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import attrs


@attrs.frozen
class Num:
    """A number as it was written."""

    value: Fraction
    rounded: bool = False
    """It was written with a decimal point, so it may stand for a number near it."""


@attrs.frozen
class Sym:
    """A variable; a Greek letter by its name. Subscripts are part of it: `x_1`."""

    name: str


@attrs.frozen
class Const:
    """pi, e, i or oo."""

    name: str


@attrs.frozen
class Sum:
    terms: tuple[Tree, ...]


@attrs.frozen
class Prod:
    factors: tuple[Tree, ...]


@attrs.frozen
class Quot:
    top: Tree
    bottom: Tree


@attrs.frozen
class Pow:
    base: Tree
    exponent: Tree


@attrs.frozen
class Call:
    """A function's value. `log` has a base as its second argument where one was written; `!` is the factorial, `binom` a binomial coefficient."""

    name: str
    args: tuple[Tree, ...]


@attrs.frozen
class PlusMinus:
    """Both signs: `left` plus and minus `right`."""

    left: Tree | None
    right: Tree


@attrs.frozen
class Percent:
    of: Tree


@attrs.frozen
class Quantity:
    """A number of units: `unit` as it was written, by words."""

    of: Tree
    unit: str


@attrs.frozen
class Relation:
    """a < b <= c: one operator fewer than sides. Operators: = != < > <= >= ~ (about) in."""

    ops: tuple[str, ...]
    sides: tuple[Tree, ...]


@attrs.frozen
class Group:
    """Several things: in brackets, whose kind `open` and `close` tell, or in a row without any (both empty)."""

    open: str
    close: str
    items: tuple[Tree, ...]


@attrs.frozen
class Union:
    """Sets put together by ∪."""

    parts: tuple[Tree, ...]


@attrs.frozen
class Rows:
    """A matrix; all rows are equally long."""

    rows: tuple[tuple[Tree, ...], ...]


@attrs.frozen
class Ratio:
    """a : b : c."""

    parts: tuple[Tree, ...]


@attrs.frozen
class Words:
    """A text answer."""

    text: str


Expression = Num | Sym | Const | Sum | Prod | Quot | Pow | Call
"""What has one value, once its variables have."""
Tree = Expression | PlusMinus | Percent | Quantity | Relation | Group | Union | Rows | Ratio | Words

MINUS_ONE = Num(Fraction(-1))


def children(tree: Tree) -> tuple[Tree, ...]:
    """The trees directly below."""
    match tree:
        case Sum(parts) | Prod(parts) | Union(parts) | Ratio(parts):
            return parts
        case Quot(top, bottom):
            return top, bottom
        case Pow(base, exponent):
            return base, exponent
        case Call(_, args):
            return args
        case PlusMinus(left, right):
            return (right,) if left is None else (left, right)
        case Percent(of) | Quantity(of, _):
            return (of,)
        case Relation(_, sides):
            return sides
        case Group(_, _, items):
            return items
        case Rows(rows):
            return tuple(cell for row in rows for cell in row)
        case _:
            return ()


def walk(tree: Tree) -> Iterator[Tree]:
    """The tree and everything below it."""
    waiting: list[Tree] = [tree]
    while waiting:
        tree = waiting.pop()
        yield tree
        waiting.extend(children(tree))


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the variables in it."""
    return frozenset(part.name for part in walk(tree) if isinstance(part, Sym))


def is_rounded(tree: Tree) -> bool:
    """Whether a number in it was written with a decimal point."""
    return any(isinstance(part, Num) and part.rounded for part in walk(tree))


def is_expression(tree: Tree) -> bool:
    """Whether all of it is an expression."""
    if isinstance(tree, Call) and tree.name == "det":
        return all(is_expression(cell) for cell in children(tree.args[0]))
    return isinstance(tree, Expression) and all(is_expression(part) for part in children(tree))
