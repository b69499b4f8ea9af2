"""What a distillation has learnt, in a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from engine.telemetry.record import Row, read_run
from recipes import summary

if TYPE_CHECKING:
    from engine.data import Problem
    from recipes.models import OpenedModel

EVALUATION = "held out"
TEACHER_KL = "teacher_kl"


def kl_learnt(directory: Path, tags: Sequence[str] = ()) -> list[str]:
    """KL to the teacher while training and on held-out problems, reward, and answers before and after. `tags`: those to be told apart."""
    record = read_run(directory)
    kls = [float(row[TEACHER_KL]) for row in record.rows if row.get(TEACHER_KL) is not None]
    if not kls:
        return []
    few = min(summary.STEPS, max(1, len(kls) // 2))
    first, last = fmean(kls[:few]), fmean(kls[-few:])
    lines = [
        f"KL        {first:.3f} nats a token to the teacher over the first {few} steps, {last:.3f} over the last {few} of {len(kls)}"
    ]
    lines += _evaluated(record.evaluations, ("all", *tags))
    return [*lines, "", *summary.before_and_after(record)]


def _evaluated(evaluations: Sequence[Row], tags: Sequence[str]) -> list[str]:
    rows = [row for row in evaluations if row.get("name") == EVALUATION]
    if len(rows) < 2:
        return []
    before, after = rows[0]["metrics"], rows[-1]["metrics"]
    lines = []
    for tag in tags:
        for metric, told in ((TEACHER_KL, "KL to the teacher"), ("reward/total", "reward")):
            name = f"{tag}/{metric}"
            if name in before and name in after:
                what = told if tag == "all" else f"{told}, {tag}"
                lines.append(
                    f"held out  {what}: {before[name]:.3f} before, {after[name]:.3f} after step {rows[-1]['step']}"
                )
    return lines


def answers_learnt(directory: Path) -> list[str]:
    """A run on written answers: likelihood and evaluations."""
    return summary.likelihood_learnt(directory)


async def reasoned(student: OpenedModel, problems: Sequence[Problem], max_tokens: int) -> list[str]:
    """`question   [reasoning]   answer   (the right one)` for a few problems, sampled greedily."""
    from engine.backends.values import SamplingParams
    from engine.rendering import user
    from recipes.models import frozen_completer

    params = SamplingParams(max_tokens, temperature=0.0)
    lines = []
    async with frozen_completer(student) as completer:
        for problem in problems:
            reply = await completer.complete([user(problem.question)], params=params, seed=0)
            thought = " ".join((reply.message.thinking or "").split())
            lines.append(f"  {problem.question}   [{thought}]   {' '.join(reply.text.split())}   ({problem.answer})")
    return ["", "held-out problems, reasoning, answers, and in brackets the right ones", *lines] if lines else []
