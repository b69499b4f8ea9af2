"""JSON Lines, memory-mapped: one pass finds where the lines begin, and a row is parsed when it is asked for.

Not through an Arrow table: that would give every row every key of every other (tool calls' arguments, message fields), stop at two
rows whose types differ, and no longer know the line.
"""

from __future__ import annotations

import json
import mmap
from array import array
from pathlib import Path

import attrs

from engine.data.errors import BadRow, DataError
from engine.data.rows import Row

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@attrs.frozen(eq=False)
class JsonLines:
    """The rows of one file. Empty lines are passed over."""

    name: str
    _bytes: mmap.mmap
    _starts: array[int]
    _lines: array[int]
    """Line number of each row, from 1."""
    columns: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> JsonLines:
        """Indexes the file. Raises DataError for an empty one, BadRow where the first row cannot be read."""
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise DataError(f"{path}: the file is empty")
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts, lines = _index(held)
        if not starts:
            raise DataError(f"{path}: the file holds nothing but empty lines")
        table = cls(str(path), held, starts, lines, ())
        return attrs.evolve(table, columns=tuple(table.row(0)))

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        """See `Table`."""
        start = self._starts[index]
        end = self._bytes.find(b"\n", start)
        line = self._bytes[start : end if end >= 0 else len(self._bytes)]
        try:
            row = json.loads(line.removeprefix(_BYTE_ORDER_MARK) if index == 0 else line)
        except UnicodeDecodeError as error:
            raise BadRow(self.where(index), f"not UTF-8 (byte {error.start} of the line)") from error
        except RecursionError as error:
            raise BadRow(self.where(index), "nested too deeply to be read") from error
        except ValueError as error:
            raise BadRow(self.where(index), f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadRow(self.where(index), f"a row is a JSON object, not {_kind(row)}")
        return row

    def where(self, index: int) -> str:
        """See `Table`."""
        return f"{self.name}, line {self._lines[index]}"


def _index(held: mmap.mmap) -> tuple[array[int], array[int]]:
    starts, lines = array("q"), array("q")
    start, number, size = 0, 0, len(held)
    while start < size:
        number += 1
        end = held.find(b"\n", start)
        end = end if end >= 0 else size
        if held[start:end].strip(b" \t\r" + _BYTE_ORDER_MARK):
            starts.append(start)
            lines.append(number)
        start = end + 1
    return starts, lines


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "null")
