"""What a run has learnt, in a few lines for the terminal: reward or likelihood, evaluations, and answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from engine.telemetry.figures import REWARD, relative
from engine.telemetry.record import Row, RunRecord, read_run

if TYPE_CHECKING:
    from engine.data import Conversation, Examples
    from recipes.models import OpenedModel

STEPS = 3
"""Steps at either end whose mean stands for the beginning and the end."""
COUNTS = ("comparisons", "comparisons_failed", "pairs", "rows", "format")
"""Of an evaluation's metrics those that are told only when they change."""
GROUPS, ANSWERS, WIDTH = 4, 4, 24


def learnt(record: RunRecord) -> list[str]:
    """The lines; none for a run without a step. Where rewards come from comparing answers with each other, the answers alone: such rewards have no level."""
    rewards = [float(row[REWARD]) for row in record.rows if REWARD in row]
    if not rewards:
        return []
    if relative(record.rows[-1]):
        return before_and_after(record)
    few = min(STEPS, max(1, len(rewards) // 2))
    lines = [
        f"reward    {fmean(rewards[:few]):.3f} over the first {few} steps, {fmean(rewards[-few:]):.3f} over the last {few} of {len(rewards)}"
        if len(rewards) > 1
        else f"reward    {rewards[0]:.3f} in the only step"
    ]
    rewarded = [row for row in record.evaluations if math.isfinite(_reward(row))]
    for name in dict.fromkeys(str(row.get("name")) for row in rewarded):
        rows = [row for row in rewarded if row.get("name") == name]
        if len(rows) > 1:
            lines.append(_evaluated_twice(name, rows[0], rows[-1]))
    return [*lines, "", *before_and_after(record)]


def before_and_after(record: RunRecord) -> list[str]:
    """Answers of the first and of the last step."""
    return [*_samples("before", record.first_samples), "", *_samples("after", record.last_samples)]


def _evaluated_twice(name: str, first: Row, last: Row) -> str:
    line = f"evaluated {_reward(first):.3f} before and {_reward(last):.3f} after step {last['step']}, on {name}"
    shares = [
        f"{metric} {first['metrics'][key]:.3f} → {last['metrics'][key]:.3f}"
        for metric in ("correct", "win", "draw")
        if (key := f"all/{metric}") in first["metrics"] and key in last["metrics"]
    ]
    return f"{line} ({', '.join(shares)})" if shares else line


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
    known = any(turn.get("reference") is not None for members in groups.values() for turn in members[0]["turns"])
    yield f"{when} (step {samples[0]['step'] + 1}): answers{', and in brackets the right one' if known else ''}"
    for members in list(groups.values())[:GROUPS]:
        turn = members[0]["turns"][-1]
        answers = "  ".join(_short(member["turns"][-1].get("answer")) for member in members[:ANSWERS])
        right = f"   ({turn['reference']})" if turn.get("reference") is not None else ""
        yield f"  {_short(turn.get('question'), 40)}   {answers}{right}"


def _short(text: object, width: int = WIDTH) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


# ---- episodes with tools

CALLS = ("env/all/tool_calls", "env/all/tool_errors", "env/all/correct")


def tools_learnt(directory: Path) -> list[str]:
    """The lines of a run with tools: as `learnt`, how often tools were called and in vain, and one whole episode."""
    record = read_run(directory)
    rows = [row for row in record.rows if all(row.get(name) is not None for name in CALLS)]
    if not rows:
        return []
    few = min(STEPS, max(1, len(rows) // 2))
    first, last = _means(rows[:few]), _means(rows[-few:])
    reward, *rest = learnt(record)
    lines = [
        reward,
        f"right     {first[2]:.3f} over the first {few} steps, {last[2]:.3f} over the last {few}",
        f"tools     {first[0]:.2f} calls an episode, {first[1]:.2f} of them in vain, over the first {few} steps; {last[0]:.2f} and {last[1]:.2f} over the last {few}",
        *rest,
    ]
    return [*lines, *_episode(record.last_samples)]


def _means(rows: Sequence[Row]) -> list[float]:
    return [fmean(float(row[name]) for row in rows) for name in CALLS]


def _episode(samples: Sequence[Row]) -> Iterator[str]:
    """The turns of the first episode in which a tool was called."""
    for sample in samples:
        turns: Sequence[Row] = sample.get("turns") or ()
        if any(turn.get("calls") for turn in turns):
            yield ""
            yield f"an episode: {_short(turns[0].get('question'), 80)}"
            for turn in turns:
                for call in turn.get("calls") or ():
                    arguments = ", ".join(f"{name}={value!r}" for name, value in (call.get("arguments") or {}).items())
                    made = f"{call['name']}({arguments})" if "name" in call else str(call.get("unparsed"))
                    yield f"  calls   {_short(made, 80)}   {_short(call.get('result', call.get('error')), 60)}"
                if turn.get("answer"):
                    yield f"  says    {_short(turn['answer'], 80)}"
            return


# ---- supervised runs


def likelihood_learnt(directory: Path) -> list[str]:
    """The lines of a supervised run: loss, evaluations, and what of the data was left out."""
    record = read_run(directory)
    losses = [float(row["train/mean_nll"]) for row in record.rows if row.get("train/mean_nll") is not None]
    if not losses:
        return []
    few = min(STEPS, max(1, len(losses) // 2))
    lines = [
        f"nll       {fmean(losses[:few]):.3f} over the first {few} steps, {fmean(losses[-few:]):.3f} over the last {few} of {len(losses)}"
    ]
    lines += _evaluated(record)
    lines += _left_out(record)
    return lines


def evaluations_learnt(directory: Path) -> list[str]:
    """The lines of a run that is told by its evaluations, and what of the data was left out."""
    record = read_run(directory)
    return [*_evaluated(record), *_left_out(record)]


def preferences_learnt(directory: Path) -> list[str]:
    """The lines of a run whose rewards come from preferences: its evaluations, and answers."""
    return [*evaluations_learnt(directory), "", *learnt(read_run(directory))]


def _evaluated(record: RunRecord) -> list[str]:
    lines = []
    for name in dict.fromkeys(str(row.get("name")) for row in record.evaluations):
        rows = [row for row in record.evaluations if row.get("name") == name]
        first, last = rows[0], rows[-1]
        for metric, value in last["metrics"].items():
            if metric in COUNTS and value == first["metrics"].get(metric):
                continue  # as many as ever: no news
            before = f"{first['metrics'][metric]:.4g} at step {first['step']}, " if first is not last else ""
            lines.append(f"{name:<9} {metric}: {before}{value:.4g} at step {last['step']}")
    return lines


def _left_out(record: RunRecord) -> list[str]:
    counts = {what: int(sum(row.get(f"data/{what}") or 0 for row in record.rows)) for what in _COUNTED}
    if any(counts[what] for what in _COUNTED if what != "rows"):
        said = ", ".join(
            words.format(counts[what]) for what, words in _COUNTED.items() if what != "rows" and counts[what]
        )
        return [f"data      of {counts['rows']} rows {said}"]
    return []


_COUNTED = {
    "rows": "",
    "bad_rows": "{} did not fit and were left out",
    "too_long": "{} examples were too long and left out",
    "truncated": "{} examples were cut short",
}


async def sampled_answers(opened: OpenedModel, examples: Examples[Conversation], count: int) -> list[str]:
    """`question   answer   (what stands there)` for the last answer of a few conversations, sampled greedily."""
    from engine.backends.values import SamplingParams
    from engine.data import BadRow
    from engine.runtime.offload import offload
    from recipes.models import frozen_completer

    lines: list[str] = []
    greedy = SamplingParams(64, temperature=0.0)
    async with frozen_completer(opened) as completer:
        for index in range(min(count, len(examples))):
            try:
                conversation = await offload(examples.__getitem__, index)
            except BadRow:
                continue
            *asked, last = conversation.messages
            if not asked or last.role != "assistant":
                continue
            reply = await completer.complete(asked, params=greedy, seed=0, tools=conversation.tools)
            lines.append(f"  {_short(asked[-1].text, 40)}   {_short(reply.text, 48)}   ({_short(last.text, 48)})")
    return ["", "held-out questions, answers, and in brackets what stands there", *lines] if lines else []
