"""Rows for a recipe, by flags: from the hub by name, from local files, or made on the spot; and a part of them held out for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs

from engine.data import KNOWN_SETS, DataError, Examples, LoadRows, OnBadRow, Rows
from recipes import runs

T = TypeVar("T")
_positive: Any = attrs.validators.optional(attrs.validators.ge(1))
_at_least_two: Any = attrs.validators.optional(attrs.validators.ge(2))

MOST_HELD_OUT = 128


@attrs.frozen(kw_only=True)
class SourceConfig(runs.RunConfig):
    """Rows, and how many of them are held out."""

    dataset: str | None = None
    """A data set that is known by name, or any on the Hugging Face hub, as owner/name; None: --data, or data made here."""
    subset: str | None = None
    """Configuration of the hub's data set; None: the default one."""
    split: str = "train"
    """Split of the hub's data set that is trained on."""
    data: Path | None = None
    """Local data instead: a .jsonl, .json, .parquet or .csv file, or a directory of them."""
    test_data: Path | None = None
    """Local data for evaluation; None: the hub set's own test split where it is known, or --held-out rows of what is trained on."""
    held_out: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    """Rows for evaluation, where they are taken out of what is trained on, or at most so many of test data; 0: none. None: at most 128, and no more
    than a tenth of what is trained on."""
    limit: int | None = attrs.field(default=None, validator=_positive)
    """Rows to take at most, the first ones."""
    on_bad_row: OnBadRow = "error"
    """What to do with a row that cannot be used: one without messages, with roles out of order, with nothing to learn from. skip is counted in the metrics."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.dataset is not None and self.data is not None:
            raise ValueError("dataset cannot be given beside --data: both say what to train on")


@attrs.frozen(kw_only=True)
class RowsConfig(SourceConfig):
    """Rows that become training sequences."""

    max_tokens: int | None = attrs.field(default=2048, validator=_at_least_two)
    """The most tokens of an example; None: no limit."""


def load_split(
    config: SourceConfig, load: LoadRows, made: Rows | None, read: Callable[[Rows], Examples[T]]
) -> tuple[Examples[T], Examples[T] | None]:
    """What to train on, and what is held out, as `read` has it. Blocks: it may download, and indexes files. `made`: the rows where no data is named; None:
    then it is an error."""
    train = read(_rows(config, load, made))
    test = _test_rows(config, load) if config.held_out != 0 else None
    if test is not None:
        held_out = read(test)
        if config.test_data is None:  # a hub set's own: drawn, for it may be sorted
            held_out = held_out.shuffled(config.seed)
        return train, held_out.take(config.held_out or MOST_HELD_OUT)
    count = min(MOST_HELD_OUT, len(train) // 10) if config.held_out is None else config.held_out
    if len(train) <= count:
        raise DataError(
            f"{train.name} has {len(train)} rows, and --held-out would take {count} of them: lower it, or give --test-data"
        )
    return train.split(count, config.seed) if count else (train, None)


def _rows(config: SourceConfig, load: LoadRows, made: Rows | None) -> Rows:
    if config.data is not None:
        return load(config.data, limit=config.limit)
    if config.dataset is not None:
        return load(config.dataset, split=config.split, subset=config.subset, limit=config.limit)
    if made is None:
        raise DataError("no data is named: give --data or --dataset")
    return made if config.limit is None else made.take(config.limit)


def _test_rows(config: SourceConfig, load: LoadRows) -> Rows | None:
    if config.test_data is not None:
        return load(config.test_data)
    known = KNOWN_SETS.get(config.dataset or "")
    if known is not None and known.has_test and config.split == "train":
        return load(known.name, split="test")
    return None
