"""Draws one run in three modes of its schedule, from simulated runs: who works when, and on which version.

python -m benchmarks.timeline --out docs/timeline.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from actors import RLSettings, Schedule, train_rl
from engine.backends.simulated import LogNormal, SamplerModel, SimulatedBackend, TrainerModel
from engine.backends.values import Completion, ModelInput, SamplingParams
from engine.runtime import simulate
from engine.runtime.instrumentation import NullTracer
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings

GROUPS, STEPS = 4, 4
MODES = (
    ("synchronous: max_staleness 0", Schedule(GROUPS)),
    ("streaming minibatches: max_staleness 0, minibatches 4", Schedule(GROUPS, minibatches=4)),
    ("asynchronous: max_staleness 1", Schedule(GROUPS, max_staleness=1)),
)
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1")
WIDTH, LEFT, ROW, GAP, PIXELS_PER_SECOND = 920, 84, 13, 3, 62.0


@attrs.frozen
class Span:
    """One bar."""

    track: str
    name: str
    start: float
    end: float
    version: int
    """Of the weights that sampled it, or the step that trained it."""


class Recorder(NullTracer):
    """Keeps the spans of rollouts and trainer."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def span(self, track: str, name: str, start: float, end: float, **args: object) -> None:
        if track in {"rollouts", "trainer"}:
            version = args["version"] if track == "rollouts" else args["step"]
            self.spans.append(Span(track, name, start, end, int(str(version))))


class _OneQuestion:
    def __init__(self, problem: int, member: int) -> None:
        self._prompt = ModelInput.from_tokens([problem, member])

    async def reset(self) -> Observation:
        return Observation(self._prompt)

    async def step(self, completion: Completion) -> Step:
        return Step(float(np.mean(completion.tokens)))


class _Questions(GroupBuilder):
    def __init__(self, problem: int) -> None:
        self._problem = problem

    async def make_envs(self) -> Sequence[Env]:
        return [_OneQuestion(self._problem, member) for member in range(4)]


def record(schedule: Schedule) -> list[Span]:
    """The bars of a simulated run."""
    recorder = Recorder()

    async def program() -> None:
        backend = SimulatedBackend(
            SamplerModel(seconds=LogNormal(0.7, 0.8, 3.0), sec_per_token=0.01),
            TrainerModel(per_datum=0.8 / (GROUPS * 4), optim_step=0.1),
            seed=3,
        )
        settings = RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=400)), shuffle=False)
        groups = [_Questions(problem) for problem in range(GROUPS * STEPS)]
        await train_rl(backend, groups=groups, steps=STEPS, schedule=schedule, settings=settings, tracer=recorder)

    simulate(program).unwrap()
    return recorder.spans


def _lanes(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Each span on the first lane that is free when it starts."""
    busy_until: list[float] = []
    placed = []
    for span in sorted(spans, key=lambda span: (span.start, span.name)):
        lane = next((index for index, end in enumerate(busy_until) if end <= span.start), len(busy_until))
        busy_until[lane:] = [span.end, *busy_until[lane + 1 :]]
        placed.append((lane, span))
    return placed


def _bar(span: Span, top: float, label: str) -> str:
    x, width = LEFT + span.start * PIXELS_PER_SECOND, max(1.5, (span.end - span.start) * PIXELS_PER_SECOND - 1)
    colour = COLOURS[span.version % len(COLOURS)]
    text = f'<text class="in" x="{x + 3:.1f}" y="{top + ROW - 3:.1f}">{label}</text>' if width > 16 else ""
    return f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{ROW}" rx="2" fill="{colour}"/>{text}'


def draw() -> str:
    """The whole picture, as SVG."""
    parts: list[str] = []
    top = 8.0
    for title, schedule in MODES:
        spans = record(schedule)
        rollouts = _lanes([span for span in spans if span.track == "rollouts"])
        lanes = 1 + max(lane for lane, _ in rollouts)
        end = max(span.end for span in spans)
        parts.append(f'<text class="title" x="{LEFT}" y="{top + 12:.1f}">{title}, {STEPS} steps in {end:.1f} s</text>')
        top += 20
        parts.append(f'<text x="0" y="{top + ROW - 3:.1f}">groups</text>')
        parts += [_bar(span, top + lane * (ROW + GAP), f"v{span.version}") for lane, span in rollouts]
        top += lanes * (ROW + GAP)
        parts.append(f'<text x="0" y="{top + ROW - 3:.1f}">trainer</text>')
        passes = [span for span in spans if span.track == "trainer" and span.name != "snapshot"]
        parts += [_bar(span, top, f"s{span.version}") for span in passes]
        top += ROW + 18
    style = (
        "text{font:11px system-ui,sans-serif;fill:#333}.title{font-weight:600}.in{fill:#fff;font-size:9px}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.in{fill:#fff}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}" height="{top:.0f}">'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/timeline.svg"))
    out = parser.parse_args().out
    out.write_text(draw(), encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
