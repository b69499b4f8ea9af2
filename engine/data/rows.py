"""Rows by position, whatever they lie in, and views of them: shuffled, split, the first few. A view holds positions, never rows.

Dimension suffix: `V` rows of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.data.errors import BadRow, DataError

Row = Mapping[str, Any]


class Table(Protocol):
    """Where rows lie. The same position gives the same row."""

    @property
    def name(self) -> str:
        """What people know it by."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the fields; of the first row, where rows may differ."""
        ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """A row, read now. Raises BadRow for one that cannot be read."""
        ...

    def where(self, index: int) -> str:
        """A row's place, as people look for it: the file and the line, or the data set and the row."""
        ...


@attrs.frozen
class Rows(Sequence[Row]):
    """Rows of a table, all of them or a view. Reading one may touch the disk: not on an event loop."""

    table: Table
    schema: str | None = None
    """The data set whose fields these are, by its name in `engine.data.KNOWN_SETS`; None: what the fields say."""
    required: tuple[str, ...] = ()
    """Fields that every row must have, and the only ones that are given; empty: whatever there is."""
    positions_V: NDArray[np.int64] | None = attrs.field(default=None, eq=False, repr=False)
    """The view's rows as positions in the table, shape (V,); None: all of them, in order."""

    @property
    def name(self) -> str:
        """What people know the rows by."""
        return self.table.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the fields; of the first row, where rows may differ."""
        return self.required or self.table.columns

    def __len__(self) -> int:
        return len(self.table) if self.positions_V is None else len(self.positions_V)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        """A row, or a view of some. Raises BadRow, naming its place, for a row that cannot be read or lacks a required field."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        position = self._position(index)
        row = self.table.row(position)
        if not self.required:
            return row
        for field in self.required:
            if field not in row:
                raise BadRow(self.table.where(position), f"field {field!r} is missing; there are {_listed(row)}")
        return {field: row[field] for field in self.required}

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """A row's place, as people look for it."""
        return self.table.where(self._position(index))

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Rows:
        """A view of the rows at these indices of this one."""
        chosen_V = np.asarray(indices, np.int64)
        return attrs.evolve(self, positions_V=chosen_V if self.positions_V is None else self.positions_V[chosen_V])

    def shuffled(self, *seed: int) -> Rows:
        """All rows in an order that follows from the seed (of one number or several) alone."""
        return self.select(_generator(*seed).permutation(len(self)))

    def take(self, count: int) -> Rows:
        """The first `count`, or all where there are fewer."""
        return self[: max(count, 0)]

    def skip(self, count: int) -> Rows:
        """All but the first `count`."""
        return self[max(count, 0) :]

    def split(self, held_out: float, seed: int = 0) -> tuple[Rows, Rows]:
        """(the others, held out): that many rows, or that share of them, drawn by the seed; both keep their order.

        Raises DataError when that leaves nothing on one side.
        """
        count = round(held_out * len(self)) if isinstance(held_out, float) else held_out
        if not 0 < count < len(self):
            raise DataError(f"{self.name}: {held_out} of its {len(self)} rows cannot be held out: both parts need rows")
        drawn = np.zeros(len(self), bool)
        drawn[_generator(seed).permutation(len(self))[:count]] = True
        return self.select(np.flatnonzero(~drawn)), self.select(np.flatnonzero(drawn))

    def _position(self, index: int) -> int:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"row {index} of {size}")
        index = index % size
        return index if self.positions_V is None else int(self.positions_V[index])


@attrs.frozen
class Concatenated:
    """Several tables, one behind the other."""

    name: str
    tables: tuple[Table, ...]
    _ends: NDArray[np.int64] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_ends", np.cumsum([len(table) for table in self.tables]))

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the first table."""
        return self.tables[0].columns

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, index: int) -> Row:
        """See `Table`."""
        table, inside = self._find(index)
        return table.row(inside)

    def where(self, index: int) -> str:
        """See `Table`."""
        table, inside = self._find(index)
        return table.where(inside)

    def _find(self, index: int) -> tuple[Table, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.tables[part], index - (int(self._ends[part - 1]) if part else 0)


@attrs.frozen
class InMemory:
    """Rows that are there already: made on the spot, or read from a file that must be read as a whole."""

    name: str
    rows: Sequence[Row]
    lines: Sequence[int] | None = None
    """The line on which each begins, where they were read from a file of lines."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the first row."""
        return tuple(self.rows[0])

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """See `Table`."""
        row = self.rows[index]
        if not isinstance(row, Mapping):
            raise BadRow(self.where(index), f"a row is a JSON object, not {type(row).__name__}")
        return row

    def where(self, index: int) -> str:
        """See `Table`."""
        return f"{self.name}, row {index + 1}" if self.lines is None else f"{self.name}, line {self.lines[index]}"


def rows_of(rows: Sequence[Row], name: str = "rows", *, schema: str | None = None) -> Rows:
    """Rows that are in memory, as everything here reads them: data made on the spot, and tests."""
    if not rows:
        raise DataError(f"{name}: there are no rows")
    return Rows(InMemory(name, rows), schema)


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng([number % 2**64 for number in seed])  # negative ones, too


def _listed(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
