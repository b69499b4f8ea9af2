"""Errors of data that people bring: where, and what is wrong with it.

DataError        a source that cannot be used
└── BadRow       a row that does not fit: caught where rows may be skipped, and counted
"""

from __future__ import annotations


class DataError(ValueError):
    """A source of rows that cannot be used."""


class BadRow(DataError):
    """A row that does not fit."""

    def __init__(self, where: str, why: str) -> None:
        """`where` names the file (or data set) and the row, `why` the field and what is wrong with it."""
        super().__init__(f"{where}, {why}" if why.startswith("field ") else f"{where}: {why}")
        self.where = where
        self.why = why
