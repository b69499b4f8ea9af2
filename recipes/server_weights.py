"""What runs left on a Tinker server: whose it is, and deleting what is nobody's. `recipes.checkpoints` is the command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from engine.backends.tinker.checkpoints import CheckpointStore, StoredCheckpoint
    from engine.storage.discarded import Remote

OpenStore = Callable[[], "AbstractAsyncContextManager[CheckpointStore]"]

_STEP = re.compile(r"-(?:state|sampler|restart)-(\d{6,})-[0-9a-f]{12}$")
"""In the names that the backend gives."""
_AT_ONCE = 20
"""Deletions between two lines of progress; what is asked for together is answered together."""


@attrs.frozen
class Weights:
    """Weights on the server, and who holds them here."""

    stored: StoredCheckpoint
    holder: str | None
    """A run's directory and what of it; None: nobody."""

    @property
    def step(self) -> str:
        """Optimizer steps behind them, as their name says."""
        found = _STEP.search(self.stored.path)
        return str(int(found[1])) if found else "-"

    def deletable(self, name: str, before: datetime) -> bool:
        """Whether nobody holds them, they are ours by name, and were saved so early that nobody can be about to note them."""
        ours = self.stored.path.rpartition("/")[2].startswith(f"{name}-")
        return self.holder is None and ours and _aware(self.stored.saved) <= before


async def look(open_store: OpenStore, runs: Sequence[Path]) -> list[Weights]:
    """All that lies on the server, the newest first. Raises UnusableState where a record below `runs` cannot be read, ValueError where there is no such directory."""
    held = holders(runs)
    async with open_store() as store:
        return [Weights(stored, held.get(stored.path)) for stored in await store.checkpoints()]


def holders(runs: Sequence[Path]) -> dict[str, str]:
    """Paths on servers that runs below these directories name, and where they do. Nothing may be overlooked: what is not held may be deleted."""
    from engine.backends.tinker import saved_in

    found: dict[str, str] = {}
    for directory in runs:
        if not directory.is_dir():
            raise ValueError(f"{directory} is no directory: --runs says below which directories the local runs lie")
        for place, state in saved_in(directory, strict=True):
            found[state.path] = _holder(place)
    return found


def _holder(place: Path) -> str:
    """`runs/x/checkpoints/000020/trainer` as `runs/x step 20`."""
    parts = place.parts
    if "checkpoints" not in parts[:-1]:
        return str(place)
    index = len(parts) - 1 - parts[::-1].index("checkpoints")
    step = parts[index + 1].strip(".").removesuffix(".partial")
    return f"{Path(*parts[:index])} step {int(step) if step.isdecimal() else step}"


def table(weights: Sequence[Weights]) -> Iterator[str]:
    """Lines of aligned columns."""
    rows = [["saved", "step", "kind", "size", "expires", "held by", "path"]]
    rows += [
        [
            f"{_aware(each.stored.saved).astimezone():%Y-%m-%d %H:%M}",
            each.step,
            each.stored.kind,
            in_bytes(each.stored.size) if each.stored.size is not None else "-",
            f"{_aware(each.stored.expires).astimezone():%Y-%m-%d %H:%M}" if each.stored.expires else "-",
            each.holder or "nobody",
            each.stored.path,
        ]
        for each in weights
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def in_bytes(size: float) -> str:
    """A size for people."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _aware(when: datetime) -> datetime:
    """Servers that leave the zone out mean UTC."""
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


# ---- deleting


async def delete(open_store: OpenStore, weights: Sequence[Weights]) -> dict[str, str]:
    """Deletes them on the server; gives those that could not be, with the reason."""
    kept: dict[str, str] = {}
    async with open_store() as store:
        for start in range(0, len(weights), _AT_ONCE):
            paths = [each.stored.path for each in weights[start : start + _AT_ONCE]]
            discarded = await store.discard(paths)
            kept.update(discarded.kept)
    return kept


async def reclaim(open_store: OpenStore, due: Sequence[Remote]) -> tuple[set[str], dict[str, str]]:
    """Deletes what a run's deleted checkpoints left; gives what is gone now, and what is not, with the reason.

    Weights that the server does not know are gone if they were saved there, or have expired. Another server may have them still.
    """
    gone: set[str] = set()
    kept: dict[str, str] = {}
    async with open_store() as store:
        for start in range(0, len(due), _AT_ONCE):
            asked = {remote.path: remote for remote in due[start : start + _AT_ONCE]}
            discarded = await store.discard(list(asked))
            gone |= discarded.deleted
            kept.update(discarded.kept)
            for path in discarded.missing:
                if asked[path].server == store.server or _expired(asked[path]):
                    gone.add(path)
                else:
                    kept[path] = f"{store.server} has no such weights; they were saved on {asked[path].server}"
    return gone, kept


def _expired(remote: Remote) -> bool:
    return remote.expires is not None and datetime.fromisoformat(remote.expires) < datetime.now(UTC)
