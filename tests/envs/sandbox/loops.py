"""Which of a sandbox's promises depend on the event loop it is asked from: these are checked on both, the others on one."""

from __future__ import annotations

from envs.sandbox import conformance

LOOPS_OWN = (
    conformance.prints_what_the_program_prints,
    conformance.ends_at_the_wall_clock,
    conformance.runs_concurrently,
    conformance.can_be_cancelled,
)
"""The rest is decided by the processes behind it, whoever asks."""
