"""A run's checkpoints: what there is, what is best, whether it is whole; and deleting some.

    python -m recipes.checkpoints --run runs/chat_sl-20260101-120000
    python -m recipes.checkpoints --run DIR --verify            # reads every file and compares its digest
    python -m recipes.checkpoints --run DIR --show best
    python -m recipes.checkpoints --run DIR --delete 20 40

Reading needs no lock and disturbs no run that is going on. Deleting wants the run to be over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from recipes import cli

if TYPE_CHECKING:
    from engine.storage import StoredCheckpoint


@attrs.frozen(kw_only=True)
class Config:
    """Lists a run's checkpoints, shows one, or deletes some."""

    run: Path
    """The run's directory."""
    show: str | None = None
    """Say all about one: latest, best, or a step."""
    delete: tuple[int, ...] = ()
    """Steps whose checkpoints are removed for good."""
    verify: bool = False
    """Read every file and compare it with its digest."""


def main(config: Config) -> None:
    """Runs the command."""
    from engine.storage import list_checkpoints, select_checkpoint

    if config.delete:
        _delete(config.run, config.delete)
    if config.show is not None:
        which: Any = int(config.show) if config.show.isdecimal() else config.show
        if which not in ("latest", "best") and not isinstance(which, int):
            raise ValueError(f"show takes latest, best or a step, not {config.show!r}")
        print("\n".join(_shown(config.run, select_checkpoint(config.run, which), verify=config.verify)))
        return
    there = list_checkpoints(config.run)
    if not there:
        print(f"{config.run} has no checkpoint left")
        return
    print("\n".join(_table(config.run, there, verify=config.verify)))


def _table(run: Path, there: Sequence[StoredCheckpoint], *, verify: bool) -> Iterator[str]:
    """Lines of aligned columns; the last is as long as it is."""
    from engine.storage import best_of

    best, marks, evaluations = best_of(run), _marks(run, there), _evaluations(run)
    rows = [["step", "saved", "size", "", best.metric if best is not None else "evaluations"]]
    for checkpoint in there:
        evaluated = [row for row in evaluations if row["step"] == checkpoint.step]
        value = best.value(evaluated, checkpoint.step) if best is not None else None
        said = f"{value:.4g}" if value is not None else ", ".join(_measures(evaluated)) if best is None else ""
        mark = " ".join(marks.get(checkpoint.step, ()))
        rows.append([str(checkpoint.step), _saved(checkpoint), _size(checkpoint), mark, said or "-"])
    if verify:
        for row, said in zip(rows, ["files", *map(_whole, there)], strict=True):
            row.append(said)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _shown(run: Path, checkpoint: StoredCheckpoint, *, verify: bool) -> Iterator[str]:
    from engine.storage import list_checkpoints

    state = json.loads((checkpoint.path / "run.json").read_text(encoding="utf-8"))
    yield f"step       {checkpoint.step} {' '.join(_marks(run, list_checkpoints(run)).get(checkpoint.step, ()))}".rstrip()
    yield f"path       {checkpoint.path}"
    yield f"saved      {_saved(checkpoint)}, {state['elapsed']:.0f} s into the run"
    yield f"size       {_size(checkpoint)}"
    older = sorted(path.name for path in (checkpoint.path / "snapshots").glob("*"))
    if older:
        yield f"holds also the weights of steps {', '.join(older)}, which groups or evaluations under way were using"
    for measure in _measures([row for row in _evaluations(run) if row["step"] == checkpoint.step]):
        yield f"evaluated  {measure}"
    if verify:
        yield f"files      {_whole(checkpoint)}"
    yield f"begin with it   --model {run}@{checkpoint.step}"
    yield f"export it       python -m recipes.export --run {run} --checkpoint {checkpoint.step} --format merged --out DIR"


def _delete(run: Path, steps: Sequence[int]) -> None:
    from engine.storage import CheckpointStore, list_checkpoints, select_checkpoint
    from engine.storage.run_directory import RunDirectory

    for step in steps:
        select_checkpoint(run, step)  # all of them, before any is gone
    with RunDirectory(run, resume=True) as opened:
        store = CheckpointStore(opened)
        newest = list_checkpoints(run)[-1].step
        for step in dict.fromkeys(steps):
            store.delete(step)
            print(f"deleted checkpoint {step}")
    if newest in steps:
        left = list_checkpoints(run)
        where = f"from step {left[-1].step}" if left else "from the beginning"
        print(f"the run now goes on {where}, and does the steps since then again")


def _marks(run: Path, there: Sequence[StoredCheckpoint]) -> dict[int, list[str]]:
    from engine.storage import best_of

    marks: dict[int, list[str]] = {there[-1].step: ["latest"]}
    best = best_of(run)
    step = best.find(_evaluations(run), [checkpoint.step for checkpoint in there]) if best is not None else None
    if step is not None:
        marks.setdefault(step, []).append("best")
    return marks


def _evaluations(run: Path) -> list[dict[str, Any]]:
    from engine.storage.files import read_lines
    from engine.storage.run_directory import EVALUATIONS

    return read_lines(run / EVALUATIONS)


def _measures(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{row['name']}/{metric} {value:.4g}"
        for row in rows
        for metric, value in row["metrics"].items()
        if isinstance(value, (int, float))
    ]


def _saved(checkpoint: StoredCheckpoint) -> str:
    return f"{datetime.fromtimestamp((checkpoint.path / 'manifest.json').stat().st_mtime).astimezone():%Y-%m-%d %H:%M}"


def _size(checkpoint: StoredCheckpoint) -> str:
    size = float(sum(path.stat().st_size for path in checkpoint.path.rglob("*") if path.is_file()))
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _whole(checkpoint: StoredCheckpoint) -> str:
    from engine.storage import UnusableCheckpoint
    from engine.storage.checkpoints import verify

    try:
        verify(checkpoint)
    except UnusableCheckpoint as error:
        return f"DAMAGED: {str(error).removeprefix(f'{checkpoint.path}: ')}"
    return "whole"


if __name__ == "__main__":
    cli.main(main, Config)
