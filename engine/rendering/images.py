"""Images as references: how large one is, and how many positions it takes. Only a file's header is ever read here.

A backend that needs the pixels decodes them itself; `expected_tokens` must agree with what its processor makes of the image.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from engine.backends.values import ImageChunk
from engine.rendering.messages import ImagePart, RenderError

_HEADER_BYTES = 1 << 18


def image_size(image: ImagePart) -> tuple[int, int]:
    """Width and height in pixels: as given, else from the header of the bytes or the file (PNG, JPEG, GIF, WebP, BMP).

    Raises RenderError for a URL without a given size, and for a file of another kind.
    """
    if image.width is not None and image.height is not None:
        return image.width, image.height
    if isinstance(image.source, bytes):
        data, name = image.source[:_HEADER_BYTES], "the image's bytes"
    else:
        if "://" in image.source or image.source.startswith("data:"):
            raise RenderError(
                f"the image {image.source[:80]} is not fetched here: give ImagePart(width=..., height=...)"
            )
        path, name = Path(image.source), image.source
        try:
            with path.open("rb") as file:
                data = file.read(_HEADER_BYTES)
        except OSError as error:
            raise RenderError(f"the image {image.source} cannot be read: {error}") from error
    try:
        size = _size_in_header(data)
    except (struct.error, IndexError):
        size = None
    if size is None:
        raise RenderError(f"no size is found in the header of {name}: give ImagePart(width=..., height=...)")
    return size


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack("<HH", data[6:10])
        return width, height
    if data.startswith(b"BM"):
        width, height = struct.unpack("<ii", data[18:26])
        return width, abs(height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack("<HH", data[26:30])
            return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + int(struct.unpack(">H", data[at + 2 : at + 4])[0])
    return None


def qwen_vl_tokens(
    width: int, height: int, *, factor: int = 32, least: int = 256 * 256, most: int = 4096 * 4096
) -> int:
    """Positions of an image in Qwen's VL models: one for each `factor` x `factor` pixels after resizing to multiples of it.

    The resizing keeps the aspect ratio and the number of pixels between `least` and `most` (Qwen2-VL, arXiv 2409.12191). The defaults
    are those of Qwen3-VL's and Qwen 3.5's processors (patches of 16, merged 2 x 2); Qwen2.5-VL has 28, 56 * 56 and 14 * 14 * 4 * 1280.
    """
    if max(width, height) > 200 * min(width, height):
        raise RenderError(
            f"an image of {width} x {height} is too long for this family: the sides' ratio must stay below 200"
        )
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        shrink = math.sqrt(width * height / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < least:
        grow = math.sqrt(least / (width * height))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return (rows // factor) * (columns // factor)


def kimi_tokens(
    width: int, height: int, *, patch: int = 14, merge: int = 2, most_patches: int = 16384, most_side: int = 512
) -> int:
    """Positions of an image in Kimi K2.5's models: one for 2 x 2 patches of 14 pixels, after shrinking to at most 16384 patches.

    The picture is padded, not stretched, to a whole number of merged patches (Kimi-VL, arXiv 2504.07491).
    """
    patches = (width // patch) * (height // patch)
    scale = min(1.0, math.sqrt(most_patches / max(1, patches)), most_side * patch / width, most_side * patch / height)
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    block = patch * merge
    return math.ceil(wide / block) * math.ceil(high / block)


def image_chunk(image: ImagePart, tokens: int) -> ImageChunk:
    """The reference a backend gets."""
    return ImageChunk(image.source, tokens)
