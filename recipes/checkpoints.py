"""A run's checkpoints: what there is, what is best, whether it is whole; and deleting some.

    python -m recipes.checkpoints --run runs/chat_sl-20260101-120000
    python -m recipes.checkpoints --run DIR --verify            # reads every file and compares its digest
    python -m recipes.checkpoints --run DIR --show best
    python -m recipes.checkpoints --run DIR --delete 20 40      # on a Tinker server, too, where the weights lie there
    python -m recipes.checkpoints --on-server                   # what lies on the Tinker server, and which local run holds it

Reading needs no lock and disturbs no run that is going on. Deleting wants the run to be over. What a server could not delete stays noted in the run's
directory, and `--reclaim` asks for it again. TINKER_BASE_URL (or --base-url) and TINKER_API_KEY say which server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from recipes import cli, server_weights
from recipes.terminal import say

if TYPE_CHECKING:
    from engine.storage import StoredCheckpoint
    from recipes.server_weights import OpenStore


@attrs.frozen(kw_only=True)
class Config:
    """Lists a run's checkpoints, shows one, or deletes some; lists what lies on a Tinker server, and deletes there what no run holds."""

    run: Path | None = None
    """The run's directory."""
    show: str | None = None
    """Say all about one: latest, best, or a step."""
    delete: tuple[int, ...] = ()
    """Steps whose checkpoints are removed for good, their weights on a Tinker server included."""
    verify: bool = False
    """Read every file and compare it with its digest."""
    reclaim: bool = False
    """Have the server delete what deleted checkpoints of the run left there."""
    on_server: bool = False
    """List all that lies on the Tinker server, whichever run it is of."""
    runs: tuple[Path, ...] = (Path("runs"),)
    """Directories below which local runs lie: what these hold is not unreferenced."""
    delete_unreferenced: bool = False
    """Delete from the Tinker server what no run below --runs holds. --on-server shows what that is."""
    older_than: float = attrs.field(default=24.0, validator=attrs.validators.ge(0.0))
    """Hours that unreferenced weights must be old to be deleted: those of a run that is going on elsewhere are younger."""
    name: str = attrs.field(default="callsheet", validator=attrs.validators.min_len(1))
    """How the names of unreferenced weights must begin to be deleted: other programs' are left alone."""
    base_url: str | None = None
    """Of the Tinker server; None: what TINKER_BASE_URL says, else the hosted service."""


def main(config: Config, open_store: OpenStore | None = None) -> None:
    """Runs the command. `open_store`: how the server is reached; None: as the configuration says."""
    if open_store is None:
        from engine.backends import tinker

        open_store = partial(tinker.open_store, base_url=config.base_url)
    if config.on_server or config.delete_unreferenced:
        _on_server(config, open_store)
    elif config.run is None:
        raise ValueError("run: which run's checkpoints? --run DIR, or --on-server for all that lies on a Tinker server")
    else:
        _of_run(config, config.run, open_store)


def _of_run(config: Config, run: Path, open_store: OpenStore) -> None:
    from engine.storage import list_checkpoints, select_checkpoint

    if config.delete or config.reclaim:
        _delete(run, config.delete, open_store)
    if config.show is not None:
        which: Any = int(config.show) if config.show.isdecimal() else config.show
        if which not in ("latest", "best") and not isinstance(which, int):
            raise ValueError(f"show takes latest, best or a step, not {config.show!r}")
        say("\n".join(_shown(run, select_checkpoint(run, which), verify=config.verify)))
        return
    there = list_checkpoints(run)
    say("\n".join(_table(run, there, verify=config.verify)) if there else f"{run} has no checkpoint left")
    _tell_noted(run)


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
    from engine.backends.tinker import saved_in
    from engine.storage import list_checkpoints

    state = json.loads((checkpoint.path / "run.json").read_text(encoding="utf-8"))
    yield f"step       {checkpoint.step} {' '.join(_marks(run, list_checkpoints(run)).get(checkpoint.step, ()))}".rstrip()
    yield f"path       {checkpoint.path}"
    yield f"saved      {_saved(checkpoint)}, {state['elapsed']:.0f} s into the run"
    yield f"size       {_size(checkpoint)}"
    older = sorted(path.name for path in (checkpoint.path / "snapshots").glob("*"))
    if older:
        yield f"holds also the weights of steps {', '.join(older)}, which groups or evaluations under way were using"
    for place, state in saved_in(checkpoint.path):
        until = f", until {state.expires}" if state.expires else ""
        yield f"weights    {state.path} on {state.server}{until} ({place.relative_to(checkpoint.path)})"
    for measure in _measures([row for row in _evaluations(run) if row["step"] == checkpoint.step]):
        yield f"evaluated  {measure}"
    if verify:
        yield f"files      {_whole(checkpoint)}"
    yield f"begin with it   --model {run}@{checkpoint.step}"
    yield f"export it       python -m recipes.export --run {run} --checkpoint {checkpoint.step} --format merged --out DIR"


def _delete(run: Path, steps: Sequence[int], open_store: OpenStore) -> None:
    from engine.backends.errors import BackendError
    from engine.backends.tinker.states import remotes
    from engine.storage import CheckpointStore, list_checkpoints, select_checkpoint
    from engine.storage.discarded import DISCARDED
    from engine.storage.run_directory import RunDirectory

    for step in steps:
        select_checkpoint(run, step)  # all of them, before any is gone
    before = list_checkpoints(run)
    with RunDirectory(run, resume=True) as opened:
        store = CheckpointStore(opened, elsewhere=remotes)
        for step in dict.fromkeys(steps):
            store.delete(step)
            say(f"deleted checkpoint {step}")
        kept = _reclaim(run, open_store)
    if before and before[-1].step in steps:
        left = list_checkpoints(run)
        where = f"from step {left[-1].step}" if left else "from the beginning"
        say(f"the run now goes on {where}, and does the steps since then again")
    if kept:
        raise BackendError(
            f"{_reasons(kept)}; still there are {', '.join(kept)}. They are noted in {run / DISCARDED}: --run {run} --reclaim asks for them again"
        )


def _reclaim(run: Path, open_store: OpenStore) -> Mapping[str, str]:
    """Has the server delete what nothing in the run names any more. What stays there stays noted, too, and is given with the reason."""
    from engine.backends.errors import BackendError
    from engine.backends.tinker.states import remotes
    from engine.storage.discarded import forget, unwanted

    due = unwanted(run, remotes)
    if not due:
        return {}
    try:
        gone, kept = anyio.run(server_weights.reclaim, open_store, due)
    except BackendError as error:
        gone, kept = set(), {remote.path: str(error) for remote in due}
    forget(run, gone)
    if gone:
        say(f"deleted {len(gone)} of its weights on the server")
    return kept


def _reasons(kept: Mapping[str, str]) -> str:
    return "; ".join(dict.fromkeys(kept.values()))


def _tell_noted(run: Path) -> None:
    from engine.storage.discarded import noted

    if left := noted(run):
        say(f"{len(left)} of the weights of deleted checkpoints are still on {left[-1].server}: --reclaim deletes them")


def _on_server(config: Config, open_store: OpenStore) -> None:
    from engine.backends.errors import BackendError

    runs = [*config.runs, *([config.run] if config.run is not None else [])]
    there = anyio.run(server_weights.look, open_store, runs)
    age = timedelta(hours=config.older_than)
    deletable = [each for each in there if each.deletable(config.name, datetime.now(UTC) - age)]
    if config.delete_unreferenced:
        kept = anyio.run(server_weights.delete, open_store, deletable) if deletable else {}
        there = [each for each in there if each not in deletable or each.stored.path in kept]
        say(f"deleted {len(deletable) - len(kept)} that no run holds")
        if kept:
            raise BackendError(f"{len(kept)} could not be deleted: {_reasons(kept)}")
    if config.on_server:
        say("\n".join(server_weights.table(there)) if there else "nothing lies on the server")
        if deletable and not config.delete_unreferenced:
            below = ", ".join(map(str, config.runs))
            say(
                f"{len(deletable)} of these, named {config.name}-..., are older than {config.older_than:g} hours and held by no run below {below}: "
                f"--delete-unreferenced deletes them"
            )


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
    return server_weights.in_bytes(sum(path.stat().st_size for path in checkpoint.path.rglob("*") if path.is_file()))


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
