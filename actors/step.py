"""A step under way: what was submitted, when each piece was done, and what that says about the time it took."""

from __future__ import annotations

from typing import Any

import anyio
import attrs

from actors.objective import StepPasses
from actors.sampler import Sampler
from actors.watched import Watched
from engine.backends.ports import Snapshot
from engine.backends.values import AdamParams, Datum
from engine.runtime.instrumentation import Tracer


@attrs.define
class SubmittedStep:
    """A step whose work the backend has."""

    step: int
    data: list[Datum]
    passes: StepPasses
    optim: Watched[dict[str, float]]
    snapshot: Watched[Snapshot] | None
    adam: AdamParams
    waited: float
    """Seconds spent waiting for something to train on."""

    @property
    def pieces(self) -> list[Watched[Any]]:
        """All that was submitted, in order."""
        return [*self.passes.submitted, self.optim, *([self.snapshot] if self.snapshot is not None else [])]


class StepClock:
    """Measures steps from boundary to boundary, and writes their spans."""

    def __init__(self, sampler: Sampler, tracer: Tracer, elapsed: float) -> None:
        """Starts now. `elapsed`: seconds of the run before a resume."""
        self._sampler = sampler
        self._tracer = tracer
        self._began = self._last_boundary = anyio.current_time()
        self._elapsed_before = elapsed
        self._sampled = sampler.statistics()
        self._busy_until = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of the run, those before a resume included."""
        return self._elapsed_before + anyio.current_time() - self._began

    def boundary(self, submitted: SubmittedStep) -> dict[str, float]:
        """Times and shares of the step that ends here."""
        now = anyio.current_time()
        sampled, before = self._sampler.statistics(), self._sampled
        duration = now - self._last_boundary
        self._sampled, self._last_boundary = sampled, now
        tokens = sampled.tokens - before.tokens
        passes, optim, snapshot = submitted.passes.submitted, submitted.optim, submitted.snapshot
        return {
            "tokens/sampled": float(tokens),
            "tokens/per_second": tokens / duration if duration > 0 else 0.0,
            "sampler/retries": float(sampled.retries - before.retries),
            "busy/sampler": _share(sampled.busy - before.busy, duration),
            "busy/trainer": _share(self._work_on(submitted), duration),
            "time/total": duration,
            "time/wait_for_groups": submitted.waited,
            "time/forward_backward": passes[-1].finished_at - passes[0].submitted_at,
            "time/optim_step": optim.finished_at - passes[-1].finished_at,
            "time/snapshot": snapshot.finished_at - optim.finished_at if snapshot is not None else 0.0,
            "time/elapsed": self.elapsed,
        }

    def _work_on(self, submitted: SubmittedStep) -> float:
        """Writes the step's spans; returns the seconds in which the backend had work of this step, the overlap with earlier work counted once."""
        busy = 0.0
        for piece in submitted.pieces:
            start = max(piece.submitted_at, self._busy_until)
            if piece.finished_at > start:
                busy += piece.finished_at - start
                self._tracer.span("trainer", piece.name, start, piece.finished_at, step=submitted.step)
            self._busy_until = max(self._busy_until, piece.finished_at)
        return busy


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0
