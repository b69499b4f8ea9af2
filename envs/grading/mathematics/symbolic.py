r"""The slow way, in a worker process: more arithmetic, fifty digits, and in the end a computer-algebra system (latex2sympy2_extended and math-verify on sympy).

Nothing that a model wrote is evaluated as Python. latex2sympy2_extended has a grammar of its own, but hands the digits of numbers to `sympy.sympify`, which evaluates
text; while it works, text is converted by `_number_only` instead (a documented extension point of sympy), and anything but a number is refused. math-verify's reader of
plain expressions, which calls `sympy.parse_expr`, is never asked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from envs.grading.mathematics.deciding import THOROUGH_STEPS, decide, hopeless
from envs.grading.mathematics.verdicts import Verdict

Settled = tuple[bool, str]
"""Whether they are equal, and how that was found."""

_A_NUMBER = re.compile(r"[+-]?(\d{1,400})(?:\.(\d{0,400}))?")


def settle(answer: str, reference: str) -> Settled:
    """Decides about two answers as far as anything here can: what nothing can show to be equal is different."""
    from envs.grading.mathematics import precise

    found = decide(answer, reference, THOROUGH_STEPS, precise.agree)
    if found.verdict is not None:
        return found.verdict, found.reason
    why_not = hopeless(answer) or hopeless(reference)
    algebra = by_algebra(answer, reference) if why_not is None else None
    if algebra is not None:
        return algebra, "by computer algebra"
    if found.leaning is not None:
        return found.leaning, found.reason
    return False, f"not shown to be equal: {found.reason}"


def by_algebra(answer: str, reference: str) -> Verdict:
    """What math-verify says; None where it cannot read one of the two."""
    import math_verify

    config = [math_verify.LatexExtractionConfig()]
    options: dict[str, Any] = {"extraction_config": config, "fallback_mode": "no_fallback", "parsing_timeout": None}
    with _nothing_evaluated():
        gold = math_verify.parse(f"${_bare(reference)}$", **options)
        said = math_verify.parse(f"${_bare(answer)}$", **options)
        if not gold or not said:
            return None
        return bool(math_verify.verify(gold, said, timeout_seconds=None))


def warm_up() -> None:
    """Imports, and what the first use makes once: so that no answer pays for it with its budget."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that nobody limits its time; the pool does
    by_algebra("\\frac{x}{2}", "0.5 x")


def _bare(text: str) -> str:
    return text.replace("$", " ").strip()


@contextmanager
def _nothing_evaluated() -> Iterator[None]:
    """While it lasts, `sympy.sympify` takes text only where it is a number."""
    from sympy.core.sympify import converter

    kept = converter.get(str)
    converter[str] = _number_only
    try:
        yield
    finally:
        if kept is None:
            del converter[str]
        else:
            converter[str] = kept


def _number_only(text: str) -> Any:
    import sympy

    match = _A_NUMBER.fullmatch(text.strip())
    if match is None:
        raise sympy.SympifyError(f"{text[:40]!r} is not a number, and text is not evaluated here")
    return sympy.Float(text, dps=max(15, len(text))) if match[2] else sympy.Integer(int(text.partition(".")[0]))
