"""Rows by name from the Hugging Face hub, or from local files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs

from engine.data.catalogue import KnownSet, find_known
from engine.data.errors import BadRow, DataError
from engine.data.json_lines import JsonLines
from engine.data.rows import Concatenated, InMemory, Row, Rows, Table

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
OFFLINE = "--data path/to/file.jsonl works offline"


class LoadRows(Protocol):
    """What a recipe takes from outside: `load_rows`, or a fake of it."""

    def __call__(
        self,
        source: str | Path,
        *,
        split: str | None = None,
        subset: str | None = None,
        columns: Sequence[str] = (),
        limit: int | None = None,
        revision: str | None = None,
        schema: str | None = None,
    ) -> Rows: ...


def load_rows(
    source: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    columns: Sequence[str] = (),
    limit: int | None = None,
    revision: str | None = None,
    schema: str | None = None,
) -> Rows:
    """Rows by position, read when they are asked for. Blocks: a hub data set is downloaded once, a file is indexed.

    Args:
        source: a name of `KNOWN_SETS` ("gsm8k"), a hub data set ("owner/name"), or a local file or directory of files of one kind (.jsonl, .json,
            .parquet, .csv, or what `datasets` saved). A path that exists is taken before a hub name. In a CSV file every value is text.
        split: "train", "test", ...: of a hub data set (default: train), or the files of a directory whose names begin with it. A single file has none.
        subset: a hub data set's configuration; known sets bring their own.
        columns: fields that every row must have, and the only ones given. Empty: all there are.
        limit: at most so many, the first.
        revision: a hub data set's branch, tag or commit.
        schema: the known set whose fields the rows have, where the source does not say it: `load_rows(path, schema="gsm8k")`.

    Raises:
        DataError: naming the source: it does not exist, is empty, cannot be reached, has no such split or column. BadRow: its first row cannot be read.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{source}: a limit of {limit} leaves no rows")
    known = find_known(schema) if schema is not None else None
    if schema is not None and known is None:
        raise DataError(f"no known data set is called {schema!r}")
    path = Path(source).expanduser()
    if path.exists() or isinstance(source, Path) or path.suffix in SUFFIXES:
        if subset is not None or revision is not None:
            raise DataError(f"{source}: a local source has neither subset nor revision")
        table = _local(path, split)
    else:
        found = find_known(str(source))
        known = known or found
        table = _from_hub(str(source), found, subset, split or "train", revision)
    if columns:
        table = _with_columns(table, columns)
    rows = Rows(table, known.name if known is not None else None, tuple(columns))
    return rows if limit is None else rows.take(limit)


# ---- local files


def _local(path: Path, split: str | None) -> Table:
    if path.is_dir():
        return _directory(path, split)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if split is not None:
        raise DataError(f"{path} is a single file and has no split {split!r}: give each split's own file")
    return _file(path)


def _directory(path: Path, split: str | None) -> Table:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _saved(path, split)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no {', '.join(SUFFIXES)} file")
    if split is not None:
        chosen = [file for file in files if _names_split(file, split)]
        if not chosen:
            raise DataError(f"{path} has no file whose name begins with {split!r}; there are {_some(files)}")
        files = chosen
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise DataError(f"{path} holds files of several kinds ({', '.join(kinds)}): name one file, or keep one kind")
    return _joined(str(path), [_file(file) for file in files])


def _names_split(file: Path, split: str) -> bool:
    rest = file.name.removeprefix(split)
    return rest != file.name and not rest[:1].isalnum()


def _some(files: Sequence[Path]) -> str:
    names = [file.name for file in files[:8]]
    return ", ".join(names) + (f" and {len(files) - 8} more" if len(files) > 8 else "")


def _file(path: Path) -> Table:
    readers: Mapping[str, Callable[[Path], Table]] = {
        ".jsonl": JsonLines.open,
        ".ndjson": JsonLines.open,
        ".json": _json,
        ".parquet": _parquet,
        ".csv": _csv,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: files of rows end in {', '.join(SUFFIXES)}")
    return reader(path)


def _json(path: Path) -> Table:
    """One JSON value: a list of rows, or an object with such a list as its only value. It has to be read as a whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        hint = "; a row a line is JSON Lines and ends in .jsonl" if "Extra data" in str(error) else ""
        raise DataError(
            f"{path}: {'the file is empty' if not path.stat().st_size else f'not JSON ({error}){hint}'}"
        ) from error
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise DataError(f"{path}: a list of rows is wanted, not {type(value).__name__}")
    if not value:
        raise DataError(f"{path}: there are no rows")
    table = InMemory(str(path), value)
    table.row(0)
    return table


def _parquet(path: Path) -> Table:
    with _quietly("Parquet", path) as datasets:
        return _arrow(datasets.Dataset.from_parquet(str(path)), str(path))


def _csv(path: Path) -> Table:
    """Every value is text: guessing would make 7 of "007" and nothing of "NA". It is read as a whole."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise DataError(f"{path}: the file is empty")
            rows, lines, line = [], [], reader.line_num + 1
            for values in reader:
                if values:
                    if len(values) != len(header):
                        raise DataError(f"{path}, line {line}: {len(values)} values for the {len(header)} columns")
                    rows.append(dict(zip(header, values, strict=True)))
                    lines.append(line)
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as CSV (line {reader.line_num}: {error})") from error
    if not rows:
        raise DataError(f"{path}: there are no rows")
    return InMemory(str(path), rows, lines)


def _saved(path: Path, split: str | None) -> Table:
    with _quietly("a saved data set", path) as datasets:
        found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        name = split or "train"
        if name not in found:
            raise DataError(f"{path} has no split {name!r}; there are {', '.join(found)}")
        return _arrow(found[name], f"{path}[{name}]")
    if split is not None:
        raise DataError(f"{path} is one data set without splits, so it has no {split!r}")
    return _arrow(found, str(path))


@contextmanager
def _quietly(kind: str, path: Path) -> Iterator[Any]:
    """The library `datasets` for reading a local file, without its progress bars; its complaint becomes a line that names the file."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except DataError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise DataError(f"{path} cannot be read as {kind} ({' '.join(str(cause).split())})") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


# ---- the hub


def _from_hub(source: str, known: KnownSet | None, subset: str | None, split: str, revision: str | None) -> Table:
    if known is None:
        return _hub(source, subset, split, revision)
    split = known.splits.get(split, split)
    subsets: Sequence[str | None] = (subset,) if subset is not None else known.subsets or (None,)
    return _joined(known.repository, [_hub(known.repository, each, split, revision) for each in subsets])


def _hub(repository: str, subset: str | None, split: str, revision: str | None) -> Table:
    import datasets

    name = f"{repository}{f' ({subset})' if subset else ''}[{split}]"
    try:
        found = datasets.load_dataset(repository, subset, split=split, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{repository}: the Hugging Face hub has no data set of that name that you may read, and no such file exists"
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise DataError(f"{name}: the Hugging Face hub cannot be reached ({error}); {OFFLINE}") from error
    except ValueError as error:  # an unknown split or configuration, which the library lists
        raise DataError(f"{name}: {' '.join(str(error).split())}") from error
    return _arrow(found, name)


# ---- Arrow tables


@attrs.frozen(eq=False)
class _ArrowTable:
    """A memory-mapped `datasets.Dataset`."""

    name: str
    data: Any

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.data.column_names)

    def __len__(self) -> int:
        return len(self.data)

    def row(self, index: int) -> Row:
        try:
            row: Row = self.data[index]
        except Exception as error:
            raise BadRow(self.where(index), f"cannot be read ({type(error).__name__}: {error})") from error
        return row

    def where(self, index: int) -> str:
        return f"{self.name}, row {index + 1}"

    def with_columns(self, columns: Sequence[str]) -> _ArrowTable:
        """The same rows with these columns alone, so that the others are never read."""
        for column in columns:
            if column not in self.columns:
                raise DataError(f"{self.name} has no column {column!r}; there are {', '.join(self.columns)}")
        return _ArrowTable(self.name, self.data.select_columns(list(columns)))


def _with_columns(table: Table, columns: Sequence[str]) -> Table:
    if isinstance(table, Concatenated):
        return Concatenated(table.name, tuple(_with_columns(part, columns) for part in table.tables))
    return table.with_columns(columns) if isinstance(table, _ArrowTable) else table


def _joined(name: str, tables: Sequence[Table]) -> Table:
    return tables[0] if len(tables) == 1 else Concatenated(name, tuple(tables))


def _arrow(data: Any, name: str) -> _ArrowTable:
    if not len(data):
        raise DataError(f"{name}: there are no rows")
    return _ArrowTable(name, data)
