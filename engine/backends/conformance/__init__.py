"""What every backend promises, as checks that any adapter can be run through, third parties' included.

With pytest, one test a check (and a gap shows as a skip with its reason):

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check):
        if reason := conformance.gap(check, SUBJECT):
            pytest.skip(reason)
        await check(SUBJECT)

Without pytest: `print(await conformance.examine(SUBJECT))`.
"""

from __future__ import annotations

from engine.backends.conformance import remote, sampling, training
from engine.backends.conformance.subject import Check, NotConforming, Subject
from engine.conformance import Report, declared_gap, run_checks

CHECKS: tuple[Check, ...] = (*training.CHECKS, *sampling.CHECKS, *remote.CHECKS)
"""All of them, each independent of the others."""


def gap(check: Check, subject: Subject) -> str | None:
    """Why the subject declares that it does not pass this check; None: it does not declare so.

    Raises ValueError when the subject declares a gap for a check that does not exist: a misspelt gap would hide nothing and tell nothing.
    """
    return declared_gap(CHECKS, check.__name__, subject)


async def examine(subject: Subject) -> Report:
    """Runs every check that is not a declared gap, one after the other, and reports on all of them."""
    return await run_checks(CHECKS, subject)


__all__ = ["CHECKS", "Check", "NotConforming", "Report", "Subject", "examine", "gap"]
