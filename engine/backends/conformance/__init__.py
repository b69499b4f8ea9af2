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

from collections.abc import Mapping

import attrs

from engine.backends.conformance import sampling, training
from engine.backends.conformance.subject import Check, NotConforming, Subject

CHECKS: tuple[Check, ...] = (*training.CHECKS, *sampling.CHECKS)
"""All of them, each independent of the others."""


@attrs.frozen
class Report:
    """How a subject did: names of checks, and for those not passed why."""

    passed: tuple[str, ...]
    gaps: Mapping[str, str]
    failed: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"passed  {name}" for name in self.passed]
        lines += [f"gap     {name}: {reason}" for name, reason in self.gaps.items()]
        lines += [f"FAILED  {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)


def gap(check: Check, subject: Subject) -> str | None:
    """Why the subject declares that it does not pass this check; None: it does not declare so.

    Raises ValueError when the subject declares a gap for a check that does not exist: a misspelt gap would hide nothing and tell nothing.
    """
    names = {known.__name__ for known in CHECKS}
    unknown = sorted(subject.gaps.keys() - names)
    if unknown:
        raise ValueError(f"no such check: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    return subject.gaps.get(check.__name__)


async def examine(subject: Subject) -> Report:
    """Runs every check that is not a declared gap, one after the other, and reports on all of them."""
    passed, gaps, failed = [], {}, {}
    for check in CHECKS:
        name = check.__name__
        reason = gap(check, subject)
        if reason is not None:
            gaps[name] = reason
            continue
        try:
            await check(subject)
        except Exception as error:  # noqa: BLE001  (any error is a finding, and the other checks are to run)
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            passed.append(name)
    return Report(tuple(passed), gaps, failed)


__all__ = ["CHECKS", "Check", "NotConforming", "Report", "Subject", "examine", "gap"]
