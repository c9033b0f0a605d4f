"""Masks as the browser draws them over a frame."""

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.video.writer import PNG_LEVEL


def mask_png(ids: npt.NDArray[np.uint8], colors: Mapping[int, str]) -> bytes:
    """Object ids [H, W] as a palette PNG whose background is transparent.

    Args:
        ids: uint8 [H, W].
        colors: of each object, as "#rrggbb"; others are black.
    """
    palette = bytearray(3 * 256)
    for object_id, color in colors.items():
        palette[3 * object_id : 3 * object_id + 3] = bytes.fromhex(color.removeprefix("#"))
    image = Image.fromarray(np.ascontiguousarray(ids))
    image.putpalette(bytes(palette[: 3 * (max(colors, default=0) + 1)]))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_LEVEL, transparency=b"\0")
    return buffer.getvalue()
