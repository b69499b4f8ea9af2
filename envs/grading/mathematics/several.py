"""Comparing several things at once: rows, sets, tuples, intervals, matrices."""

from __future__ import annotations

from collections.abc import Sequence

from envs.grading.mathematics.polynomials import Fuel
from envs.grading.mathematics.trees import Expression, Group, Num, PlusMinus, Relation, Rows, Sym, Tree, symbols
from envs.grading.mathematics.verdicts import Compare, Verdict, all_of, both_signs, by_intervals, compare_all

MOST_ITEMS = 64
"""Items of a set, or cells of a matrix, that are compared."""


def _flat(group: Group) -> tuple[Tree, ...]:
    """Its items, both of each ±."""
    items: list[Tree] = []
    for item in group.items:
        both = both_signs(item) if isinstance(item, PlusMinus) else None
        items += both.items if isinstance(both, Group) else [item]
    return tuple(items)


def compare_groups(reference: Tree, answer: Tree, compare: Compare, fuel: Fuel) -> Verdict:
    """Of which one at least is several things."""
    if not (isinstance(reference, Group) and isinstance(answer, Group)):
        group, other = (reference, answer) if isinstance(reference, Group) else (answer, reference)
        assert isinstance(group, Group)  # noqa: S101  (one of the two is)
        items = _distinct(group.items, compare) if group.open in ("{", "") else ()
        if len(items) == 1:
            return compare(items[0], other) if group is reference else compare(other, items[0])
        return False if isinstance(other, Expression) and not symbols(other) else None
    one, other_items = _flat(reference), _flat(answer)
    if max(len(one), len(other_items)) > MOST_ITEMS:
        return None
    kinds = {_kind(reference), _kind(answer)}
    if kinds == {"interval"}:
        same = by_intervals(reference, answer, fuel)
        return (
            compare_all(one, other_items, compare) and _brackets(reference) == _brackets(answer)
            if same is None
            else same
        )
    if kinds <= {"set", "row"}:
        return _unordered(one, other_items, compare)
    if "set" in kinds:
        return False if kinds == {"set", "tuple"} else None
    if "interval" in kinds:
        return _interval_and_pair(reference, answer, compare)
    if kinds == {"row", "tuple"}:
        return compare_all(_values_by_name(reference) or one, _values_by_name(answer) or other_items, compare)
    return compare_all(one, other_items, compare)


def _brackets(group: Group) -> tuple[str, str]:
    return group.open, group.close


def _kind(group: Group) -> str:
    """row, set, tuple or interval. A pair in round brackets is a tuple, until it is compared with an interval."""
    if not group.open:
        return "row"
    if group.open == "{":
        return "set"
    if _brackets(group) == ("(", ")"):
        return "tuple"
    return "interval" if len(group.items) == 2 else "tuple"


def _interval_and_pair(reference: Group, answer: Group, compare: Compare) -> Verdict:
    """(1, 2] or [1, 2] beside (1, 2): as intervals they differ; as a list and a tuple they may not."""
    if {_kind(reference), _kind(answer)} == {"interval", "tuple"}:
        return False if len(reference.items) == len(answer.items) == 2 else None
    return None if compare_all(reference.items, answer.items, compare) is not False else False


def _values_by_name(group: Group) -> tuple[Tree, ...] | None:
    """x = 1, y = 2 as 1, 2: in the order of the names."""
    values: dict[str, Tree] = {}
    for item in group.items:
        if not (isinstance(item, Relation) and item.ops == ("=",) and isinstance(item.sides[0], Sym)):
            return None
        values[item.sides[0].name] = item.sides[1]
    return tuple(values[name] for name in sorted(values)) if len(values) == len(group.items) else None


def _unordered(reference: Sequence[Tree], answer: Sequence[Tree], compare: Compare) -> Verdict:
    """As sets: everything of the one is in the other. What is written the same is not compared."""
    verdicts = []
    for some, others, turned in ((reference, answer, False), (answer, reference, True)):
        for item in some:
            if item not in others:
                verdicts.append(_among(item, others, compare, turned=turned))
                if verdicts[-1] is False:
                    return False
    return all_of(verdicts)


def _among(item: Tree, others: Sequence[Tree], compare: Compare, *, turned: bool) -> Verdict:
    undecided = False
    for other in others:
        verdict = compare(other, item) if turned else compare(item, other)
        if verdict:
            return True
        undecided |= verdict is None
    return None if undecided else False


def _distinct(items: Sequence[Tree], compare: Compare) -> list[Tree]:
    found: list[Tree] = []
    for item in items:
        if not any(compare(item, each) for each in found):
            found.append(item)
    return found


def compare_matrices(reference: Tree, answer: Tree, compare: Compare) -> Verdict:
    """Of which one at least is a matrix."""
    if not (isinstance(reference, Rows) and isinstance(answer, Rows)):
        other = answer if isinstance(reference, Rows) else reference
        return False if isinstance(other, Num) else None
    if len(reference.rows) != len(answer.rows) or len(reference.rows[0]) != len(answer.rows[0]):
        return False
    cells = [cell for row in reference.rows for cell in row]
    if len(cells) > MOST_ITEMS:
        return None
    return compare_all(cells, [cell for row in answer.rows for cell in row], compare)
