"""Sets of real numbers as intervals, however they were written: brackets, unions, inequalities, single numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import attrs

from envs.grading.mathematics.exact import exact
from envs.grading.mathematics.numeric import real_value
from envs.grading.mathematics.polynomials import Exact, Fuel, Monster, TooHard, constant
from envs.grading.mathematics.trees import Const, Group, Prod, Relation, Sym, Tree, Union


@attrs.frozen
class End:
    """An end of an interval, in order of size by its double, and exactly."""

    size: float
    value: Exact | None
    """None: infinity."""

    def same(self, other: End) -> bool:
        """Whether it is the same number."""
        return self.value == other.value and (self.value is not None or self.size == other.size)


@attrs.frozen
class Interval:
    low: End
    high: End
    low_open: bool
    high_open: bool


def intervals_of(tree: Tree, fuel: Fuel) -> list[Interval] | None:
    """The set as disjoint intervals in order, those that touch joined; None for what is no set of real numbers, or not seen to be one here.

    A pair in round brackets is taken for an open interval.
    """
    try:
        found = list(_intervals(tree, fuel))
    except (TooHard, Monster, _NoInterval):
        return None
    return _joined(found)


class _NoInterval(Exception):
    pass


def _intervals(tree: Tree, fuel: Fuel) -> Iterable[Interval]:
    if isinstance(tree, Union):
        for part in tree.parts:
            yield from _intervals(part, fuel)
    elif isinstance(tree, Group) and tree.open in "([" and tree.close in ")]" and tree.open and len(tree.items) == 2:
        low, high = (_end(item, fuel) for item in tree.items)
        if low.size > high.size:
            raise _NoInterval
        yield Interval(low, high, tree.open == "(" or low.value is None, tree.close == ")" or high.value is None)
    elif isinstance(tree, Group) and tree.open == "{":
        for each in tree.items:
            end = _end(each, fuel)
            yield Interval(end, end, low_open=False, high_open=False)
    elif isinstance(tree, Group) and not tree.open and all(isinstance(item, Relation) for item in tree.items):
        for item in tree.items:
            yield from _intervals(item, fuel)
    elif isinstance(tree, Relation):
        yield from _of_relation(tree, fuel)
    else:
        raise _NoInterval


def variable_of(relation: Relation) -> str | None:
    """The variable that a relation bounds, if it stands alone on one side and nowhere else."""
    places = [side for side in relation.sides if isinstance(side, Sym)]
    return places[0].name if len(places) == 1 else None


def _of_relation(tree: Relation, fuel: Fuel) -> Iterable[Interval]:
    name = variable_of(tree)
    if name is None:
        raise _NoInterval
    if tree.ops == ("in",):
        yield from _intervals(tree.sides[1], fuel)
        return
    if tree.ops == ("!=",):
        other = _end(next(side for side in tree.sides if not isinstance(side, Sym)), fuel)
        yield Interval(_infinity(-1), other, low_open=True, high_open=True)
        yield Interval(other, _infinity(1), low_open=True, high_open=True)
        return
    place = next(n for n, side in enumerate(tree.sides) if isinstance(side, Sym))
    if len(tree.sides) > 3 or not set(tree.ops) <= {"<", ">", "<=", ">="} or (len(tree.sides) == 3 and place != 1):
        raise _NoInterval
    result = Interval(_infinity(-1), _infinity(1), low_open=True, high_open=True)
    for number, op in enumerate(tree.ops):
        below = (op[0] == "<") == (number >= place)  # the variable is below the other side
        end = _end(tree.sides[number + 1] if number >= place else tree.sides[number], fuel)
        if below:
            result = attrs.evolve(result, high=end, high_open="=" not in op)
        else:
            result = attrs.evolve(result, low=end, low_open="=" not in op)
    if result.low.size > result.high.size:
        raise _NoInterval
    yield result


def _infinity(sign: int) -> End:
    return End(sign * math.inf, None)


def _end(tree: Tree, fuel: Fuel) -> End:
    if tree == Const("oo"):
        return _infinity(1)
    if isinstance(tree, Prod) and len(tree.factors) == 2 and tree.factors[1] == Const("oo"):
        return _infinity(-1)
    value = exact(tree, fuel)
    number = constant(value.top) if constant(value.bottom) == 1 else None
    size = _double(number) if number is not None else real_value(tree)
    if size is None:
        raise _NoInterval
    return End(size, value)


def _double(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _joined(found: list[Interval]) -> list[Interval]:
    found.sort(key=lambda each: (each.low.size, each.low_open))
    result: list[Interval] = []
    for each in found:
        if result:
            last = result[-1]
            touches = each.low.size < last.high.size or (
                each.low.same(last.high) and not (each.low_open and last.high_open)
            )
            if touches:
                if each.high.size > last.high.size or (each.high.same(last.high) and last.high_open):
                    result[-1] = attrs.evolve(last, high=each.high, high_open=each.high_open)
                continue
        result.append(each)
    return result


def same_intervals(left: list[Interval], right: list[Interval]) -> bool:
    """Whether two sets are the same."""
    return len(left) == len(right) and all(
        one.low.same(other.low)
        and one.high.same(other.high)
        and one.low_open == other.low_open
        and one.high_open == other.high_open
        for one, other in zip(left, right, strict=True)
    )
