"""The HTML of a report: its frame, tables and samples. Every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from engine.telemetry.charts import DARK, LIGHT, STYLE
from engine.telemetry.figures import number

Row = Mapping[str, Any]
LONGEST = 3000
"""Characters of a question or an answer that are shown."""
GROUPS, MEMBERS = 2, 4
"""Groups of a step, and members of a group, that are shown."""

PAGE_STYLE = """
*{box-sizing:border-box}
:root{color-scheme:light dark}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:22px;margin:0 0 14px;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 12px}
h3{font-size:13px;font-weight:600;margin:0 0 8px;color:var(--muted)}
section{margin-top:28px}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:0}
.facts div{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 16px}
.facts dt{color:var(--muted);font-size:12px;overflow-wrap:anywhere}
.facts dd{margin:0;font-size:19px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px 14px 10px;min-width:0}
figure.wide{grid-column:1/-1}
.tight{display:none}
@media (max-width:760px){.roomy{display:none}.tight{display:block}}
figcaption{font-size:13px;font-weight:600;margin-bottom:6px}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:12px;color:var(--muted);margin-top:6px}
.key{white-space:nowrap}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle;background:var(--c)}
.key i.area{height:10px;width:10px}.key i.dots{height:9px;width:9px;border-radius:50%}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--muted)}
th,td{padding:6px 14px;border-bottom:1px solid var(--rule);vertical-align:top;overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}
.columns{columns:340px;column-gap:0}
.columns div{display:flex;justify-content:space-between;gap:16px;padding:5px 14px;font-size:13px;break-inside:avoid;border-bottom:1px solid var(--rule)}
.columns b{font-weight:400;color:var(--muted);overflow-wrap:anywhere}
.columns span{font-variant-numeric:tabular-nums}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:16px}
.sample{padding:12px 14px;margin-bottom:12px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;max-height:15em;overflow:auto;margin:0}
.question{border-left:3px solid var(--axis);padding-left:10px;margin-bottom:8px}
.answer{display:grid;grid-template-columns:44px minmax(0,1fr);gap:10px;padding:6px 0;border-top:1px solid var(--rule)}
.score{font-size:12px;font-variant-numeric:tabular-nums;color:var(--muted);text-align:right}
.score.good{color:var(--good);font-weight:600}.score.bad{color:var(--bad)}
.end{font-size:12px;color:var(--muted)}
.meta{font-size:12px;color:var(--muted);margin-bottom:8px;overflow-wrap:anywhere}
details{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 14px}
summary{cursor:pointer;font-weight:600;font-size:14px}
pre{font-size:12.5px;overflow-x:auto;margin:10px 0 0}
"""


def page(name: str, facts: Sequence[tuple[str, str]], sections: Iterable[str]) -> str:
    """The whole document; `sections` are HTML."""
    tiles = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in facts)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}</title>
<style>:root{{{LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}{PAGE_STYLE}{STYLE}</style>
</head>
<body><main>
<h1>{escape(name)}</h1>
<dl class="facts">{tiles}</dl>
{"".join(sections)}
</main></body>
</html>
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, columns: bool = False) -> str:
    """A table; `columns`: pairs, flowing in as many columns as fit."""
    if columns:
        pairs = "".join(f"<div><b>{escape(key)}</b><span>{escape(value)}</span></div>" for key, value in rows)
        return f'<div class="card columns">{pairs}</div>'
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="card"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def samples_section(first: Sequence[Row], last: Sequence[Row]) -> str:
    """Questions and answers of the first step, beside those of the last."""
    columns = [_step_samples("first", first)]
    if last:
        columns.append(_step_samples("last", last))
    return f'<section><h2>What was asked and answered</h2><div class="two">{"".join(columns)}</div></section>'


def _step_samples(which: str, samples: Sequence[Row]) -> str:
    by_ticket: dict[str, list[Row]] = {}
    for sample in samples:
        by_ticket.setdefault(str(sample.get("ticket")), []).append(sample)
    shown = list(by_ticket.values())[:GROUPS]
    cards = "".join(f'<div class="card sample">{"".join(_group(members[:MEMBERS]))}</div>' for members in shown)
    return f"<div><h3>step {escape(number(samples[0].get('step')))}, the {which}</h3>{cards}</div>"


def _group(members: Sequence[Row]) -> Iterator[str]:
    """One group: where all members were asked the same single question, that stands once above the answers."""
    tags = members[0].get("tags")
    if isinstance(tags, list) and tags:
        yield f'<div class="meta">{escape(", ".join(map(str, tags)))}</div>'
    turns = [_turns(member) for member in members]
    questions = {str(own[0].get("question")) for own in turns if own}
    shared = len(questions) == 1 and all(len(own) == 1 for own in turns) and "question" in turns[0][0]
    if shared:
        yield _text(turns[0][0].get("question"), "text question")
        yield _reference(turns[0][0])
    for member, own in zip(members, turns, strict=True):
        for index, turn in enumerate(own):
            if not shared and "question" in turn:
                yield _text(turn.get("question"), "text question")
                yield _reference(turn)
            closing = index == len(own) - 1
            yield _answer(
                turn,
                member.get("reward") if closing else turn.get("reward"),
                str(member.get("end", "")) if closing else "",
            )


def _turns(sample: Row) -> list[Row]:
    turns = sample.get("turns")
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _answer(turn: Row, reward: object, end: str) -> str:
    kind = "score"
    if isinstance(reward, int | float):
        kind += " good" if reward > 0 else " bad" if reward < 0 else ""
    score = f'<div class="{kind}">{escape(number(reward)) if reward is not None else ""}</div>'
    if "answer" in turn:
        body = _text(turn["answer"], "text")
    else:
        others = {key: value for key, value in turn.items() if key not in ("question", "reference", "reward")}
        body = _text("\n".join(f"{key}: {value}" for key, value in others.items()), "text")
    return f'<div class="answer">{score}<div>{body}{_ending(end)}</div></div>'


def _reference(turn: Row) -> str:
    right = turn.get("reference")
    return "" if right is None else f'<div class="meta">right: {escape(str(right)[:LONGEST])}</div>'


def _ending(end: str) -> str:
    return "" if end in ("", "done") else f'<div class="end">ended by {escape(end.replace("_", " "))}</div>'


def _text(value: object, classes: str) -> str:
    text = "" if value is None else str(value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}\n… {len(text) - LONGEST} more characters"
    return f'<div class="{classes}">{escape(text)}</div>'
