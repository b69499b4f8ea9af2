"""Pictures made on the spot: a coloured shape somewhere on a noisy ground, written as PNG without any imaging library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.data.images import LabelledImage
from engine.rendering import ImagePart
from engine.runtime.seeds import derive_seed

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (42, 157, 74),
    "blue": (38, 84, 196),
    "yellow": (245, 205, 40),
    "purple": (130, 50, 160),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")


def png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """An RGB picture, shape (height, width, 3), as a PNG file (W3C PNG, third edition: colour type 2, eight bits, no filter)."""
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or pixels_HWC.dtype != np.uint8:
        raise ValueError(f"an RGB picture of bytes is wanted, not shape {pixels_HWC.shape} of {pixels_HWC.dtype}")
    height, width = pixels_HWC.shape[:2]
    lines_HB = np.zeros((height, 1 + width * 3), np.uint8)  # each line begins with its filter, 0: none
    lines_HB[:, 1:] = pixels_HWC.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines_HB.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@attrs.frozen
class DrawnShapes:
    """A dataset of drawn shapes. Picture `index` follows from (seed, index) alone."""

    asks: str = attrs.field(default="shape", validator=attrs.validators.in_(("shape", "colour", "both")))
    """What a picture's label says: `circle`, `red`, or `red circle`."""
    size: int = attrs.field(default=64, validator=attrs.validators.ge(16))
    """Pixels of a side."""
    noise: float = attrs.field(default=8.0, validator=attrs.validators.ge(0.0))
    """Standard deviation of each pixel's noise, of 255."""
    count: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    seed: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """All labels there are."""
        if self.asks == "shape":
            return SHAPES
        if self.asks == "colour":
            return tuple(COLOURS)
        return tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabelledImage:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        rng = np.random.default_rng(derive_seed(self.seed, index))
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        pixels_HWC = draw(str(shape), COLOURS[str(colour)], self.size, rng, self.noise)
        label = {"shape": shape, "colour": colour}.get(self.asks, f"{colour} {shape}")
        return LabelledImage(ImagePart(png(pixels_HWC), self.size, self.size), str(label))


def draw(
    shape: str, colour: tuple[int, int, int], size: int, rng: np.random.Generator, noise: float = 0.0
) -> NDArray[np.uint8]:
    """A shape of a random size at a random place on a light ground, shape (size, size, 3)."""
    radius = size * rng.uniform(0.16, 0.3)
    x, y = rng.uniform(radius + 1, size - radius - 1, 2)
    rows_HW, columns_HW = np.mgrid[0:size, 0:size] + 0.5
    inside_HW = _inside(shape, (columns_HW - x) / radius, (rows_HW - y) / radius)
    ground = np.full((size, size, 3), rng.uniform(225, 255), np.float64)
    ground[inside_HW] = colour
    return np.clip(ground + rng.normal(0.0, noise, ground.shape), 0, 255).astype(np.uint8)


def _inside(shape: str, x_HW: NDArray[Any], y_HW: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether points are inside a shape around 0 that reaches from -1 to 1."""
    within = (np.abs(x_HW) <= 1) & (np.abs(y_HW) <= 1)
    if shape == "circle":
        return np.asarray(x_HW**2 + y_HW**2 <= 1)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(x_HW), np.abs(y_HW)) <= 0.85)
    if shape == "triangle":  # its tip is up
        return np.asarray(within & (np.abs(x_HW) <= (y_HW + 1) / 2))
    if shape == "cross":
        return np.asarray(within & ((np.abs(x_HW) <= 0.33) | (np.abs(y_HW) <= 0.33)))
    raise ValueError(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
