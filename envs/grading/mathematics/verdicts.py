"""What a comparison comes to, and comparisons of several things at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envs.grading.mathematics.intervals import intervals_of, same_intervals
from envs.grading.mathematics.polynomials import Fuel
from envs.grading.mathematics.trees import MINUS_ONE, Group, PlusMinus, Prod, Sum, Tree

Verdict = bool | None
"""True: the same. False: different. None: not decided."""
Compare = Callable[[Tree, Tree], Verdict]
"""Reference, answer → verdict."""


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """True when all are, False when one is, otherwise undecided."""
    if any(verdict is False for verdict in verdicts):
        return False
    return None if any(verdict is None for verdict in verdicts) else True


def any_of(verdicts: Sequence[Verdict]) -> Verdict:
    """True when one is, False when all are, otherwise undecided."""
    if any(verdicts):
        return True
    return None if any(verdict is None for verdict in verdicts) else False


def compare_all(reference: Sequence[Tree], answer: Sequence[Tree], compare: Compare) -> Verdict:
    """Each with its counterpart, in order."""
    if len(reference) != len(answer):
        return False
    return all_of([compare(one, other) for one, other in zip(reference, answer, strict=True)])


def by_intervals(reference: Tree, answer: Tree, fuel: Fuel) -> Verdict:
    """As sets of real numbers, where both are that."""
    one = intervals_of(reference, fuel)
    other = intervals_of(answer, fuel) if one is not None else None
    if one is None or other is None:
        return None
    return same_intervals(one, other)


def both_signs(tree: PlusMinus) -> Tree:
    """A row of the two."""
    plus = tree.right if tree.left is None else Sum((tree.left, tree.right))
    negative = Prod((MINUS_ONE, tree.right))
    minus: Tree = negative if tree.left is None else Sum((tree.left, negative))
    return Group("", "", (plus, minus))
