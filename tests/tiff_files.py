"""Images of more than 8 bits for tests, written byte by byte: Pillow writes only some of their kinds."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
_BYTES, _SHORTS, _LONGS = 2, 3, 4
_FORMATS = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    path: Path, pages: list[Pixels], description: str = "", *, order: str = "<", planes: bool = False, zero: int = 1
) -> Path:
    """Pages [H, W] or [H, W, 3] of any dtype, not compressed.

    Args:
        order: of the bytes, "<" or ">".
        planes: whether the channels are stored one after the other.
        zero: what 0 is in a gray image: 0 for white, 1 for black.
    """
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for page in pages:
        channels = page.shape[2] if page.ndim == 3 else 1
        stored = page.astype(page.dtype.newbyteorder(order))
        at = _append(content, (np.moveaxis(stored, -1, 0) if planes else stored).tobytes())
        strips = channels if planes else 1
        size = page.nbytes // strips
        tags = [
            (256, _LONGS, page.shape[1]),
            (257, _LONGS, page.shape[0]),
            (258, _SHORTS, *[8 * page.itemsize] * channels),
            (259, _SHORTS, 1),
            (262, _SHORTS, 2 if channels == 3 else zero),
            (270, _BYTES, *description.encode(), 0),
            (273, _LONGS, *[at + size * strip for strip in range(strips)]),
            (277, _SHORTS, channels),
            (278, _LONGS, page.shape[0]),
            (279, _LONGS, *[size] * strips),
            (284, _SHORTS, 2 if planes else 1),
            (339, _SHORTS, *[_FORMATS[page.dtype.kind]] * channels),
        ]
        entries = b"".join(_entry(content, order, *tag) for tag in tags)
        struct.pack_into(f"{order}I", content, link, len(content))
        content += struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
        link = len(content) - 4
    path.write_bytes(content)
    return path


def _entry(content: bytearray, order: str, tag: int, kind: int, *values: int) -> bytes:
    letter = {_BYTES: "B", _SHORTS: "H", _LONGS: "I"}[kind]
    value = struct.pack(f"{order}{len(values)}{letter}", *values)
    if len(value) > 4:
        value = struct.pack(f"{order}I", _append(content, value))
    return struct.pack(f"{order}HHI", tag, kind, len(values)) + value.ljust(4, b"\0")


def _append(content: bytearray, data: bytes) -> int:
    """Returns its offset, which is even."""
    at = len(content)
    content += data + bytes(len(data) % 2)
    return at


def write_png(path: Path, pixels: Pixels) -> Path:
    """Pixels [H, W], [H, W, 2], [H, W, 3] or [H, W, 4] of 16 bits."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path
