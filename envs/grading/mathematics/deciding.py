"""One answer beside one reference, both as text: decided at once where that can be done in bounded time, or left to a worker."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import attrs

from envs.grading.mathematics.comparing import compare
from envs.grading.mathematics.lexing import Unreadable
from envs.grading.mathematics.polynomials import Fuel, Monster, TooHard
from envs.grading.mathematics.reading import Reading, read, read_without_commas
from envs.grading.mathematics.trees import Tree
from envs.grading.mathematics.verdicts import Verdict

QUICK_LENGTH = 256
"""Characters of an answer that is decided on the event loop."""
QUICK_STEPS = 2_000
"""Steps of exact arithmetic there: some milliseconds at the very most."""
THOROUGH_STEPS = 200_000
"""The same in a worker."""


@attrs.frozen
class Decision:
    """What was found."""

    verdict: Verdict
    """None: a computer-algebra system may know."""
    reason: str
    leaning: Verdict = None
    """Where readers of notation differ (1/2x): what ours says."""
    readable: bool = True
    """Both could be read."""


LONGEST_FOR_ALGEBRA = 600
DEEPEST_FOR_ALGEBRA = 20
"""Brackets within one another: the time of ANTLR's parser grows steeply with them."""
Confirm = Callable[[Tree, Tree], Verdict]


def decide(answer: str, reference: str, steps: int = QUICK_STEPS, confirm: Confirm | None = None) -> Decision:
    """Compares an answer with a reference, neither with anything around it. Never raises.

    `confirm` decides about expressions that agree as far as double precision goes.
    """
    if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(reference):
        if Fraction(answer) == Fraction(reference):
            return Decision(True, "equal")
        if "." not in answer and "." not in reference:
            return Decision(False, "different")
    if _squeezed(answer) == _squeezed(reference) != "":
        return Decision(True, "written the same")
    readings: list[list[Reading]] = []
    for text, whose in ((reference, "the reference"), (answer, "the answer")):
        try:
            found = [read(text)]
        except Unreadable as error:
            return Decision(None, f"{whose} is not read here: {error}", readable=False)
        other = read_without_commas(text)
        readings.append(found if other is None else [*found, other])
    return _decide(readings[0], readings[1], steps, confirm)


def hopeless(text: str) -> str | None:
    """Why a computer-algebra system need not be asked about a text that cannot be read here; None: it may be."""
    if len(text) > LONGEST_FOR_ALGEBRA:
        return f"its {len(text)} characters are too many for computer algebra"
    depth = deepest = 0
    for sign in text:
        if sign in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in ")]}":
            depth -= 1
            if depth < 0:
                break
    if depth:
        return "its brackets do not match"
    if deepest > DEEPEST_FOR_ALGEBRA:
        return f"it has more than {DEEPEST_FOR_ALGEBRA} brackets within one another"
    command = _FORBIDDEN.search(text)
    if command is not None or not text.isprintable():
        return "it is no mathematics"
    return None


def _decide(references: list[Reading], answers: list[Reading], steps: int, confirm: Confirm | None) -> Decision:
    """Any of the readings will do."""
    found: list[Decision] = []
    for reference in references:
        for answer in answers:
            found.append(_one(reference, answer, Fuel(steps, confirm)))
            if found[-1].verdict:
                return found[-1]
    return next((decision for decision in found if decision.verdict is None), found[0])


def _one(reference: Reading, answer: Reading, fuel: Fuel) -> Decision:
    if reference.tree == answer.tree:
        return Decision(True, "written the same")
    try:
        verdict = compare(reference.tree, answer.tree, fuel)
    except TooHard as error:
        return Decision(None, str(error))
    except Monster as error:
        return Decision(False, f"not graded: {error}")
    reason = {True: "equal", False: "different", None: "not decided by arithmetic"}[verdict]
    if (reference.doubtful or answer.doubtful) and verdict is not None:
        return Decision(None, f"{reason}, if read as we do", verdict)
    return Decision(verdict, reason)


_PLAIN = re.compile(r"-?[0-9]{1,100}(?:\.[0-9]{1,100})?")
_FORBIDDEN = re.compile(
    r"\\(?:input|include|write|read|def|let|csname|catcode|openin|openout|immediate|usepackage|newcommand)|__|;\s*\w+\s|import\s"
)
_BETWEEN_DIGITS = re.compile(r"(?<=\d)\s+(?=\d)")
_DRESSING = re.compile(r"\s+|\\[,;:! ]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\$|\\\(|\\\)|\\\[|\\\]")


def _squeezed(text: str) -> str:
    text = _BETWEEN_DIGITS.sub("␣", text)  # 1 2 is not 12
    return _DRESSING.sub("", text).rstrip(".").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
