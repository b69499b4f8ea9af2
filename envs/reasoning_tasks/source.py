"""Problems generated ahead, in worker processes: a generator may take a second a problem, and holds neither the event loop nor the group that waits for the next one.

Problems come in chunks. The first that asks for one starts it, and the chunk behind it too; all others find theirs ready, or wait for the same work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import anyio
import anyio.abc
import attrs

from engine.runtime.jobs import JobError
from engine.runtime.processes import WorkerPool
from engine.runtime.seeds import derive_seed
from envs.reasoning_tasks.work import Item, Variant, generate

KEPT = 64
"""Chunks that are kept; older ones are made again when they are asked for."""


class NotGenerated(Exception):
    """A task's generator failed, or took longer than its budget."""


@attrs.define(eq=False)
class _Chunk:
    variant: Variant
    number: int
    wanted: Sequence[int]
    """Places within the chunk."""
    ready: anyio.Event = attrs.field(factory=anyio.Event)
    items: Mapping[int, Item] = attrs.field(factory=dict)
    error: JobError | None = None


class ProblemSource:
    """Problem `index` of a task at a level; always the same one for the same seed and size of chunks."""

    def __init__(
        self, pool: WorkerPool, tasks: anyio.abc.TaskGroup, *, seed: int, chunk: int = 8, budget: float = 60.0
    ) -> None:
        """`tasks` does the work in the background. `chunk`: problems made at once. `budget`: seconds that making them may take."""
        self._pool = pool
        self._tasks = tasks
        self._seed = seed
        self._size = chunk
        self._budget = budget
        self._chunks: OrderedDict[tuple[Variant, int], _Chunk] = OrderedDict()

    async def problem(self, variant: Variant, index: int, wanted_of: Mapping[int, Sequence[int]]) -> Item:
        """The problem. `wanted_of`: by number of a chunk, which of its places are of this task (this one's chunk and the next).

        Raises NotGenerated.
        """
        number, place = divmod(index, self._size)
        chunk = self._begun(variant, number, wanted_of.get(number, (place,)))
        if place not in chunk.wanted:
            chunk = self._begun(variant, number, (place,), again=True)
        if wanted_of.get(number + 1):
            self._begun(variant, number + 1, wanted_of[number + 1])
        await chunk.ready.wait()
        if chunk.error is not None:
            raise NotGenerated(f"task {variant.name!r}: problems {number * self._size} and following: {chunk.error}")
        return chunk.items[place]

    def _begun(self, variant: Variant, number: int, wanted: Sequence[int], *, again: bool = False) -> _Chunk:
        key = (variant, number)
        chunk = None if again else self._chunks.get(key)
        if chunk is None or chunk.error is not None:
            chunk = self._chunks[key] = _Chunk(variant, number, tuple(wanted))
            self._tasks.start_soon(self._make, chunk)
        self._chunks.move_to_end(key)
        while len(self._chunks) > KEPT:
            self._chunks.popitem(last=False)
        return chunk

    async def _make(self, chunk: _Chunk) -> None:
        seed = derive_seed(self._seed, chunk.number) % 2**31
        try:
            items = await self._pool.run(
                generate, chunk.variant, seed, self._size, chunk.wanted, budget=self._budget * len(chunk.wanted)
            )
            chunk.items = dict(zip(chunk.wanted, items, strict=True))
        except JobError as error:
            chunk.error = error
        finally:
            chunk.ready.set()
