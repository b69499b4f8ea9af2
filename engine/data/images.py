"""Labelled images: rows with an image column, or a directory whose subdirectories are the classes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from engine.data.errors import DataError
from engine.data.examples import Examples, OnBadRow, as_set
from engine.data.fields import missing, wrong
from engine.data.rows import Row, Rows, rows_of
from engine.rendering import ImagePart
from engine.rendering.images import image_size
from engine.rendering.messages import RenderError

IMAGES = ("image", "img", "picture")
LABELS = ("label", "labels", "class", "category", "fine_label")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")


@attrs.frozen
class LabelledImage:
    """An image and what is to be seen in it."""

    image: ImagePart
    label: str


def read_labelled_images(
    rows: Rows,
    *,
    image: str | None = None,
    label: str | None = None,
    classes: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> Examples[LabelledImage]:
    """Rows as labelled images.

    An image is bytes, a path, what `datasets` stores (`{"bytes": ..., "path": ...}`), or a decoded picture of its own. A label is text, or a whole number that counts
    in `classes`. `image`, `label`: the columns; None: the one that is called so, or nearly so.
    """

    def read(row: Row) -> LabelledImage:
        return LabelledImage(
            image_of(row, _column(row, image, IMAGES)), _label(row, _column(row, label, LABELS), classes)
        )

    return as_set(Examples(rows, read), on_bad_row)


def image_directory(path: str | Path) -> Rows:
    """A directory as rows: every image in a subdirectory is of the class that the subdirectory is called. Raises DataError."""
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise DataError(f"{directory} is no directory of images")
    found: list[Row] = [
        {"image": str(file), "label": folder.name}
        for folder in sorted(directory.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(f"{directory} has no images in subdirectories ({', '.join(SUFFIXES)})")
    return rows_of(found, str(directory))


def classes_of(examples: Examples[LabelledImage]) -> tuple[str, ...]:
    """The labels there are, in order of the alphabet. Reads every row."""
    return tuple(sorted({example.label for example in examples}))


def image_of(row: Row, field: str) -> ImagePart:
    """A field as an image with its size. Raises ValueError naming the field."""
    value = row[field]
    try:
        part = ImagePart(_source(value, field))
        width, height = image_size(part)
    except RenderError as error:
        raise ValueError(f"field {field!r}: {error}") from error
    return attrs.evolve(part, width=width, height=height)


def _source(value: Any, field: str) -> bytes | str:
    if isinstance(value, Mapping):  # as `datasets` stores it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str | Path) and str(value):
        return str(value)
    if callable(getattr(value, "save", None)):  # a decoded picture, as `datasets` gives it
        written = io.BytesIO()
        value.save(written, format="PNG")
        return written.getvalue()
    raise wrong(field, "an image", value)


def _column(row: Row, named: str | None, usual: Sequence[str]) -> str:
    if named is not None:
        if named not in row:
            raise missing(row, named)
        return named
    found = [name for name in usual if row.get(name) is not None]
    if not found:
        raise missing(row, usual[0])
    return found[0]


def _label(row: Row, field: str, classes: Sequence[str]) -> str:
    value = row[field]
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"field {field!r} is empty")
        if classes and value not in classes:
            raise ValueError(f"field {field!r}: {value!r} is none of the classes {', '.join(classes)}")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if not classes:
            raise ValueError(
                f"field {field!r} is the number {value}: the classes' names are needed to say what it means"
            )
        if not 0 <= value < len(classes):
            raise ValueError(f"field {field!r} is {value}, but there are {len(classes)} classes, numbered from 0")
        return classes[value]
    raise wrong(field, "a class's name or number", value)
