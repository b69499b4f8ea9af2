"""Rows read as something: conversations, problems, comparisons. What does not fit is an error or a counted skip, never silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.data.errors import BadRow, DataError
from engine.data.rows import Row, Rows

T = TypeVar("T")
OnBadRow = Literal["error", "skip"]

SHOWN = 3
"""Rows that did not fit of which the reason is kept."""


@attrs.frozen
class Skipped:
    """Rows that did not fit and were left out."""

    count: int = 0
    of: int = 0
    reasons: tuple[str, ...] = ()
    """Why, for the first few."""

    def __str__(self) -> str:
        if not self.count:
            return f"all {self.of} rows fit"
        more = "; ..." if self.count > len(self.reasons) else ""
        return f"skipped {self.count} of {self.of} rows that do not fit: {'; '.join(self.reasons)}{more}"


@attrs.frozen
class Examples(Generic[T]):
    """Rows by position, each read as a T when it is asked for."""

    rows: Rows
    read: Callable[[Row], T]
    """Raises ValueError for a row that does not fit; its message names the field."""
    skipped: Skipped = attrs.field(factory=Skipped)
    """What `fitting` left out."""

    @property
    def name(self) -> str:
        """What people know the rows by."""
        return self.rows.name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> T:
        """Raises BadRow, naming file, row and field, for one that does not fit."""
        row = self.rows[index]
        try:
            return self.read(row)
        except BadRow:
            raise
        except ValueError as error:
            raise BadRow(self.rows.where(index), str(error)) from error
        except Exception as error:
            error.add_note(f"while reading {self.rows.where(index)}")
            raise

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """A row's place, as people look for it."""
        return self.rows.where(index)

    def on(self, rows: Rows) -> Examples[T]:
        """The same reading of other rows: `examples.on(examples.rows.shuffled(seed))`."""
        return attrs.evolve(self, rows=rows)

    def select(self, indices: NDArray[np.int64]) -> Examples[T]:
        """A view of those at these indices."""
        return self.on(self.rows.select(indices))

    def shuffled(self, *seed: int) -> Examples[T]:
        """All, in an order that follows from the seed (of one number or several) alone."""
        return self.on(self.rows.shuffled(*seed))

    def take(self, count: int) -> Examples[T]:
        """The first `count`, or all where there are fewer."""
        return self.on(self.rows.take(count))

    def split(self, held_out: float, seed: int = 0) -> tuple[Examples[T], Examples[T]]:
        """(the others, held out), see `Rows.split`."""
        others, held = self.rows.split(held_out, seed)
        return self.on(others), self.on(held)

    def fitting(self) -> Examples[T]:
        """Those that fit: reads each row once, and says in `skipped` how many it left out and why. Raises DataError when none is left."""
        good: list[int] = []
        reasons: list[str] = []
        for index in range(len(self)):
            try:
                self[index]
            except BadRow as bad:
                if len(reasons) < SHOWN:
                    reasons.append(str(bad))
                continue
            good.append(index)
        skipped = Skipped(len(self) - len(good), len(self), tuple(reasons))
        if not good:
            raise DataError(f"{self.name}: no row fits: {'; '.join(reasons)}")
        kept = self if len(good) == len(self) else self.select(np.array(good))
        return attrs.evolve(kept, skipped=skipped)


def as_set(examples: Examples[T], on_bad_row: OnBadRow) -> Examples[T]:
    """Examples as they are ("error": the first that does not fit raises when it is read), or only those that fit ("skip")."""
    if on_bad_row not in ("error", "skip"):
        raise DataError(f"on_bad_row is 'error' or 'skip', not {on_bad_row!r}")
    return examples.fitting() if on_bad_row == "skip" else examples
