"""Comparing equations and inequalities: with each other, with what they say of a variable, and with the intervals that they describe."""

from __future__ import annotations

from envs.grading.mathematics.exact import exact
from envs.grading.mathematics.intervals import variable_of
from envs.grading.mathematics.polynomials import Exact, Fuel, TooHard, ratio
from envs.grading.mathematics.trees import MINUS_ONE, Expression, Group, Prod, Quot, Relation, Sum, Sym, Tree, symbols
from envs.grading.mathematics.verdicts import Compare, Verdict, by_intervals, compare_all


def compare_relations(reference: Tree, answer: Tree, compare: Compare, fuel: Fuel) -> Verdict:
    """Of which one at least is an equation or an inequality."""
    reference, answer = _chain_cut(reference), _chain_cut(answer)
    if isinstance(reference, Relation) and isinstance(answer, Relation):
        return _two_relations(reference, answer, compare, fuel)
    as_sets = by_intervals(reference, answer, fuel)
    if as_sets is not None:
        return as_sets
    if isinstance(answer, Relation) and answer.ops[-1] in ("=", "~", "in"):
        # What was asked for is a value: the one at the end of the equation, or at its beginning where a name stands at the end.
        value = answer.sides[0] if _is_name(answer.sides[-1]) and not symbols(reference) else answer.sides[-1]
        return compare(reference, value)
    if isinstance(reference, Relation) and reference.ops[0] in ("=", "~", "in") and _is_name(reference.sides[0]):
        return compare(reference.sides[-1], answer)
    return None


def _chain_cut(tree: Tree) -> Tree:
    """x = 2 + 3 = 5 says x = 5, and x ~ 3.14 (about) x = 3.14."""
    if isinstance(tree, Relation) and set(tree.ops) <= {"=", "~"} and _is_name(tree.sides[0]):
        return Relation(("=",), (tree.sides[0], tree.sides[-1]))
    return tree


def _is_name(tree: Tree) -> bool:
    """x, f(x), A/B, (x, y): letters only."""
    if isinstance(tree, Prod):
        return all(_is_name(factor) for factor in tree.factors)
    if isinstance(tree, Quot):
        return _is_name(tree.top) and _is_name(tree.bottom)
    if isinstance(tree, Group):
        return all(_is_name(item) for item in tree.items)
    return isinstance(tree, Sym)


def _two_relations(reference: Relation, answer: Relation, compare: Compare, fuel: Fuel) -> Verdict:
    if by_intervals(reference, answer, fuel):
        same_variable = variable_of(reference) == variable_of(answer)
        return True if same_variable else None
    if len(reference.ops) != 1 or len(answer.ops) != 1:
        return (
            None
            if len(reference.ops) != len(answer.ops) or reference.ops != answer.ops
            else _pairwise(reference, answer, compare)
        )
    if reference.ops == answer.ops and compare_all(reference.sides, answer.sides, compare):
        return True
    assigned = _assignments(reference, answer, compare)
    if assigned is not None:
        return assigned
    try:
        one, other = _difference(reference, fuel), _difference(answer, fuel)
        scale = ratio(one, other) if one is not None and other is not None else None
    except TooHard:
        return None
    if scale is None or not scale:
        both_linear = one is not None and other is not None and one.is_linear and other.is_linear
        return False if both_linear and reference.ops == answer.ops == ("=",) else None
    expected = (
        answer.ops[0] if scale > 0 else {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(answer.ops[0], answer.ops[0])
    )
    return reference.ops[0] == expected


def _assignments(reference: Relation, answer: Relation, compare: Compare) -> Verdict:
    """x = 5 beside x = 6, or beside y = 5."""
    names = []
    for relation in (reference, answer):
        name = relation.sides[0]
        if relation.ops != ("=",) or not isinstance(name, Sym) or name.name in symbols(relation.sides[1]):
            return None
        names.append(name)
    if names[0].name.casefold() == names[1].name.casefold():
        return compare(reference.sides[1], answer.sides[1])
    return None if symbols(reference.sides[1]) or symbols(answer.sides[1]) else False


def _pairwise(reference: Relation, answer: Relation, compare: Compare) -> Verdict:
    return True if compare_all(reference.sides, answer.sides, compare) else None


def _difference(relation: Relation, fuel: Fuel) -> Exact | None:
    left, right = relation.sides
    if not (isinstance(left, Expression) and isinstance(right, Expression)):
        return None
    return exact(Sum((left, Prod((MINUS_ONE, right)))), fuel)
