r"""Whether an answer says what the reference says: by arithmetic and a few numbers, without a computer-algebra system.

    True     they are the same: written the same, or equal by exact arithmetic
    False    they differ: as numbers, at a point of their variables, in kind or in size
    None     this does not decide it: a worker with sympy may

Bounded in time: text of bounded length, trees of bounded depth, arithmetic on bounded fuel.

What counts as the same beside equal values:
- x = 5 and 5; y = 2x + 3 and 2x + 3. The reference's variable counts where both name one: x = 5 is not y = 5.
- 5 cm and 5, where only one side names a unit; 100 cm and 1 m. 5 cm is not 5 m.
- 50%, 0.5 and 50.
- A decimal and a number from which it differs only after the sixth place.
- A row of numbers (1, 2, 3) with a set of them in any order, with a tuple in this order. {5} and 5. An open interval and a pair look the same.
- An inequality and the interval that it describes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import attrs

from envs.grading.mathematics import numeric
from envs.grading.mathematics.exact import exact
from envs.grading.mathematics.polynomials import Fuel, TooHard, differ_as_numbers, same_value
from envs.grading.mathematics.relations import compare_relations
from envs.grading.mathematics.several import compare_groups, compare_matrices
from envs.grading.mathematics.trees import (
    MINUS_ONE,
    Call,
    Const,
    Group,
    Num,
    Percent,
    PlusMinus,
    Prod,
    Quantity,
    Quot,
    Ratio,
    Relation,
    Rows,
    Sum,
    Sym,
    Tree,
    Union,
    Words,
    is_expression,
    is_rounded,
    symbols,
)
from envs.grading.mathematics.verdicts import Verdict, all_of, any_of, both_signs, by_intervals, compare_all
from envs.grading.mathematics.words import LETTERS_ALONE, NUMERALS, find_unit

FEW_STEPS = 600
"""Steps of exact arithmetic on two expressions before a few numbers are tried."""
PLACES = 5e-7
"""Distance up to which a decimal stands for another number: the sixth place."""
RELATIVE = 1e-3
"""The same, relative to the number: 0.0000012 is not 0.000001."""


def compare(reference: Tree, answer: Tree, fuel: Fuel) -> Verdict:  # noqa: C901  (one line for each kind of answer)
    """Whether the two say the same. Raises Monster where the answer holds a number that is too large to be computed."""
    fuel.burn(4)
    if reference == answer:
        return True
    if isinstance(reference, PlusMinus):
        reference = both_signs(reference)
    if isinstance(answer, PlusMinus):
        answer = both_signs(answer)
    again = functools.partial(compare, fuel=fuel)
    if isinstance(reference, Words) or isinstance(answer, Words):
        return _words(reference, answer)
    if isinstance(reference, Relation) or isinstance(answer, Relation):
        return compare_relations(reference, answer, again, fuel)
    if isinstance(reference, Percent) or isinstance(answer, Percent):
        return _percents(reference, answer, fuel)
    if isinstance(reference, Quantity) or isinstance(answer, Quantity):
        return _quantities(reference, answer, fuel)
    if isinstance(reference, Ratio) or isinstance(answer, Ratio):
        return _ratios(reference, answer, fuel)
    if isinstance(reference, Union) or isinstance(answer, Union):
        return by_intervals(reference, answer, fuel)
    if isinstance(reference, Rows) or isinstance(answer, Rows):
        return compare_matrices(reference, answer, again)
    if isinstance(reference, Group) or isinstance(answer, Group):
        return compare_groups(reference, answer, again, fuel)
    return _expressions(reference, answer, fuel)


# ---- expressions


def _expressions(reference: Tree, answer: Tree, fuel: Fuel) -> Verdict:
    if not (is_expression(reference) and is_expression(answer)):
        return None
    rounded = is_rounded(reference) or is_rounded(answer)
    few = Fuel(min(fuel.left, FEW_STEPS))
    equal = _exactly(reference, answer, few, rounded=rounded)
    fuel.burn(min(fuel.left, FEW_STEPS) - max(few.left, 0))
    if equal is not None:
        return equal
    if rounded and not symbols(reference) and not symbols(answer):
        return _close(reference, answer)
    meant = _folded(reference, answer) or _with_unit_letter(reference, answer)
    if meant is not None:
        return compare(*meant, fuel)
    # Numbers before long arithmetic: they tell most of what differs at once.
    if numeric.agree(reference, answer) is False:
        return None if rounded else False
    if few.left < 0:
        equal = _exactly(reference, answer, fuel, rounded=rounded)
    if equal is None and fuel.confirm is not None and not rounded:
        equal = fuel.confirm(reference, answer)
    return equal


def _exactly(reference: Tree, answer: Tree, fuel: Fuel, *, rounded: bool) -> Verdict:
    if isinstance(reference, Call) and isinstance(answer, Call) and reference.name == answer.name == "base":
        return compare_all(reference.args, answer.args, functools.partial(compare, fuel=fuel))
    try:
        one, other = exact(reference, fuel), exact(answer, fuel)
        if same_value(one, other, fuel):
            return True
    except TooHard:
        return None
    if rounded:
        return None
    known = (
        (one.rational is not None and other.rational is not None)
        or differ_as_numbers(one, other)
        or one.infinite
        or other.infinite
    )
    return False if known else None


def _folded(reference: Tree, answer: Tree) -> tuple[Tree, Tree] | None:
    """Both with small letters, where each has letters of one size only and they differ in that: X + 1 and x + 1."""
    one, other = symbols(reference), symbols(answer)
    if one == other or {name.casefold() for name in one} != {name.casefold() for name in other}:
        return None
    if len({name.casefold() for name in one}) != len(one) or len({name.casefold() for name in other}) != len(other):
        return None
    return _small(reference), _small(answer)


def _with_unit_letter(reference: Tree, answer: Tree) -> tuple[Tree, Tree] | None:
    """The numbers, of 5m beside 5: a letter that is a unit's, where nothing else is said of one."""
    if symbols(reference) or not isinstance(answer, Prod) or len(answer.factors) != 2:
        return None
    number, letter = answer.factors
    if isinstance(letter, Sym) and letter.name in LETTERS_ALONE and not symbols(number):
        return reference, number
    return None


def _small(tree: Tree) -> Tree:
    if isinstance(tree, Sym):
        return Sym(tree.name.casefold())
    changes: dict[str, Any] = {}
    for field in attrs.fields(type(tree)):
        value = getattr(tree, field.name)
        if isinstance(value, tuple):
            changes[field.name] = tuple(_small(each) if attrs.has(type(each)) else each for each in value)
        elif attrs.has(type(value)):
            changes[field.name] = _small(value)
    return attrs.evolve(tree, **changes) if changes else tree


def _close(reference: Tree, answer: Tree) -> Verdict:
    """Of numbers of which one is a decimal."""
    one, other = numeric.real_value(reference), numeric.real_value(answer)
    if one is None or other is None:
        return None
    return abs(one - other) <= PLACES * (1 + 1e-9) and abs(one - other) <= RELATIVE * max(abs(one), abs(other))


# ---- words, percents, units, ratios


def _words(reference: Tree, answer: Tree) -> Verdict:
    one, other = _as_words(reference), _as_words(answer)
    if isinstance(one, str) and isinstance(other, str):
        # Two or three letters may be a product: ab and ba.
        return True if one == other else None if len(one) <= 3 and sorted(one) == sorted(other) else False
    word, tree = (one, answer) if isinstance(one, str) else (other, reference)
    if isinstance(word, str):
        if word in NUMERALS:
            return compare(Num(Fraction(NUMERALS[word])), tree, Fuel(200))
        if word in _SETS:
            return compare(_SETS[word], tree, Fuel(200))
        if len(word) <= 4 and word.isalpha() and isinstance(tree, Prod):  # ab and a·b
            return None
    return False if isinstance(tree, Num | Quot | Sum | Rows | Percent | Ratio) else None


def _as_words(tree: Tree) -> str | None:
    if isinstance(tree, Words):
        return tree.text
    return tree.name.casefold() if isinstance(tree, Sym) and len(tree.name) == 1 else None


_EMPTY = Group("{", "}", ())
_REALS = Group("(", ")", (Prod((MINUS_ONE, Const("oo"))), Const("oo")))
_SETS: Mapping[str, Tree] = {
    "all real numbers": _REALS,
    "all reals": _REALS,
    "reals": _REALS,
    "real numbers": _REALS,
    "empty set": _EMPTY,
    "no solution": _EMPTY,
    "no solutions": _EMPTY,
    "no real solutions": _EMPTY,
    "infinity": Const("oo"),
}


def _percents(reference: Tree, answer: Tree, fuel: Fuel) -> Verdict:
    if isinstance(reference, Percent) and isinstance(answer, Percent):
        return compare(reference.of, answer.of, fuel)
    percent, other = (reference, answer) if isinstance(reference, Percent) else (answer, reference)
    assert isinstance(percent, Percent)  # noqa: S101  (one of the two is)
    if isinstance(other, Quantity):
        return False
    share = Quot(percent.of, Num(Fraction(100)))
    return any_of([compare(percent.of, other, fuel), compare(share, other, fuel)])


def _quantities(reference: Tree, answer: Tree, fuel: Fuel) -> Verdict:
    if not (isinstance(reference, Quantity) and isinstance(answer, Quantity)):
        one, other = (each.of if isinstance(each, Quantity) else each for each in (reference, answer))
        return compare(one, other, fuel)
    here, there = find_unit(reference.unit), find_unit(answer.unit)
    if here is None or there is None or here == there:  # things that are counted: 3 apples
        return compare(reference.of, answer.of, fuel)
    if here[0] != there[0]:
        return False
    one = Prod((Num(here[1]), reference.of))
    other = Prod((Num(there[1]), answer.of))
    if here[0] == "angle":
        return any_of([compare(one, other, fuel), _close(one, other)])
    return compare(one, other, fuel)


def _ratios(reference: Tree, answer: Tree, fuel: Fuel) -> Verdict:
    if isinstance(reference, Ratio) and isinstance(answer, Ratio):
        if len(reference.parts) != len(answer.parts):
            return False
        first, last = reference.parts[0], answer.parts[0]
        return all_of(
            [
                compare(Prod((part, last)), Prod((other, first)), fuel)
                for part, other in zip(reference.parts[1:], answer.parts[1:], strict=True)
            ]
        )
    pair, other = (reference, answer) if isinstance(reference, Ratio) else (answer, reference)
    assert isinstance(pair, Ratio)  # noqa: S101  (one of the two is)
    if len(pair.parts) != 2:
        return None
    return compare(Quot(*pair.parts), other, fuel)
