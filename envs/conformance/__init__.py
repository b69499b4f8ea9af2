"""What every environment promises, as checks that any dataset of groups can be run through, third parties' included.

With pytest, one test a check (and a gap shows as a skip with its reason):

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check):
        if reason := conformance.gap(check, SUBJECT):
            pytest.skip(reason)
        await check(SUBJECT)

Without pytest: `print(await conformance.examine(SUBJECT))`. An environment that waits for processes or sockets needs an event loop with a real
clock.
"""

from __future__ import annotations

import attrs

from engine.conformance import NotConforming, Report, declared_gap, run_checks
from envs.conformance import endings, episodes
from envs.conformance.subject import Check, Subject

CHECKS: tuple[Check, ...] = (*episodes.CHECKS, *endings.CHECKS)
"""All of them, each independent of the others."""


def gap(check: Check, subject: Subject) -> str | None:
    """Why the subject declares that it does not pass this check; None: it does not declare so.

    Raises ValueError when the subject declares a gap for a check that does not exist: a misspelt gap would hide nothing and tell nothing.
    """
    return declared_gap(CHECKS, check.__name__, _with_claims(subject))


async def examine(subject: Subject) -> Report:
    """Runs every check that is not a declared gap, one after the other, and reports on all of them."""
    return await run_checks(CHECKS, _with_claims(subject))


def _with_claims(subject: Subject) -> Subject:
    """What the subject does not claim is a gap too."""
    if subject.pickles:
        return subject
    return attrs.evolve(subject, gaps={"builders_can_be_pickled": "not claimed (pickles=False)", **subject.gaps})


__all__ = ["CHECKS", "Check", "NotConforming", "Report", "Subject", "examine", "gap"]
