"""Values on disk: attrs classes as JSON, their arrays beside it in one compressed-free npz.

A checkpoint holds thousands of small arrays (tokens and logprobs of finished groups). One zip member each would cost milliseconds apiece, so arrays of one
dtype are laid end to end, and the JSON refers to them by dtype, offset and shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_MARK = "__array__"


def write_value(value: Any, directory: Path, name: str) -> None:
    """Writes `value` as `<name>.json` and its arrays as `<name>.npz` into `directory`."""
    arrays = _Packer()
    tree = arrays.converter().unstructure(value)
    (directory / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    with (directory / f"{name}.npz").open("wb") as file:
        np.savez(file, **arrays.joined())  # type: ignore[arg-type]  # the stub takes the names for its options


def read_value(kind: type[T], directory: Path, name: str) -> T:
    """Reads what `write_value` wrote. Raises OSError, ValueError or cattrs' errors when it is damaged."""
    tree = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(directory / f"{name}.npz", allow_pickle=False) as file:
        joined = {dtype: file[dtype] for dtype in file.files}
    return _unpacker(joined).structure(tree, kind)


def _base_converter() -> cattrs.Converter:
    converter = cattrs.Converter(unstruct_collection_overrides={frozenset: sorted})
    converter.register_structure_hook(
        bytes | str, lambda value, _: bytes.fromhex(value["bytes"]) if isinstance(value, dict) else value
    )
    converter.register_unstructure_hook(bytes, lambda value: {"bytes": value.hex()})
    return converter


class _Packer:
    """Collects arrays while a value is unstructured."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._sizes: dict[str, int] = {}

    def converter(self) -> cattrs.Converter:
        converter = _base_converter()
        converter.register_unstructure_hook_func(_is_array_type, self._pack)
        converter.register_unstructure_hook(np.ndarray, self._pack)
        converter.register_unstructure_hook_func(
            lambda kind: isinstance(kind, type) and issubclass(kind, np.generic), lambda value: value.item()
        )
        return converter

    def _pack(self, array: NDArray[Any]) -> dict[str, Any]:
        dtype = array.dtype.str
        if array.dtype.hasobject:
            raise TypeError(f"an array of dtype {array.dtype} cannot be saved: only numbers and booleans can")
        offset = self._sizes.get(dtype, 0)
        self._parts.setdefault(dtype, []).append(array.ravel())
        self._sizes[dtype] = offset + array.size
        return {_MARK: [dtype, offset, list(array.shape)]}

    def joined(self) -> dict[str, NDArray[Any]]:
        return {dtype: np.concatenate(parts) for dtype, parts in self._parts.items()}


def _unpacker(joined: dict[str, NDArray[Any]]) -> cattrs.Converter:
    converter = _base_converter()

    def unpack(value: Any, _: Any) -> NDArray[Any]:
        dtype, offset, shape = value[_MARK]
        size = int(np.prod(shape, dtype=np.int64))
        flat = joined[dtype][offset : offset + size]
        if flat.size != size:
            raise ValueError(f"an array of {size} numbers of dtype {dtype} is cut short")
        return flat.reshape(shape)

    converter.register_structure_hook_func(_is_array_type, unpack)
    return converter


def _is_array_type(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is np.ndarray or kind is np.ndarray
