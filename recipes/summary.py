"""What a run has learnt, in a few lines for the terminal: reward, evaluations, and answers before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from engine.telemetry.figures import REWARD
from engine.telemetry.record import Row, RunRecord

STEPS = 3
"""Steps at either end whose mean stands for the beginning and the end."""
GROUPS, ANSWERS, WIDTH = 4, 4, 24


def learnt(record: RunRecord) -> list[str]:
    """The lines; none for a run without a step."""
    rewards = [float(row[REWARD]) for row in record.rows if REWARD in row]
    if not rewards:
        return []
    few = min(STEPS, max(1, len(rewards) // 2))
    lines = [
        f"reward    {fmean(rewards[:few]):.3f} over the first {few} steps, {fmean(rewards[-few:]):.3f} over the last {few} of {len(rewards)}"
        if len(rewards) > 1
        else f"reward    {rewards[0]:.3f} in the only step"
    ]
    if len(record.evaluations) > 1:
        first, last = record.evaluations[0], record.evaluations[-1]
        lines.append(
            f"evaluated {_reward(first):.3f} before and {_reward(last):.3f} after step {last['step']}, on {last.get('name')}"
        )
    lines += ["", *_samples("before", record.first_samples), "", *_samples("after", record.last_samples)]
    return lines


def _reward(evaluation: Row) -> float:
    return float(evaluation["metrics"].get("all/reward/total", float("nan")))


def _samples(when: str, samples: Sequence[Row]) -> Iterator[str]:
    """`What is 47 + 5?  42 42 52 42   (52)`: one line for each of the last step's first groups."""
    groups: dict[object, list[Row]] = {}
    for sample in samples:
        if sample.get("turns"):
            groups.setdefault(sample.get("ticket"), []).append(sample)
    if not groups:
        return
    yield f"{when} (step {samples[0]['step'] + 1}): answers, and in brackets the right one"
    for members in list(groups.values())[:GROUPS]:
        turn = members[0]["turns"][-1]
        answers = "  ".join(_short(member["turns"][-1].get("answer")) for member in members[:ANSWERS])
        right = f"   ({turn['reference']})" if turn.get("reference") is not None else ""
        yield f"  {_short(turn.get('question'), 40)}   {answers}{right}"


def _short(text: object, width: int = WIDTH) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
