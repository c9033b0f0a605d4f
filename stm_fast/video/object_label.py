"""The numbers of objects, drawn into them."""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Ids = npt.NDArray[np.uint8]  # [H, W]

_ROWS = 120  # of the coarse mask in which places for labels are searched
_HEIGHT = 1 / 26  # of a digit's font, relative to the shorter side of the frame
_SMALLEST = 9  # pixels
_DEEP = 0.8  # of the greatest distance to the border


class _Stamp(NamedTuple):
    """A number, white with a black outline."""

    light: npt.NDArray[np.uint16]  # [h, w] opacity of the white digits, 0 to 255
    dark: npt.NDArray[np.uint16]  # [h, w] opacity of digits and outline


def draw_labels(drawn: npt.NDArray[np.uint8], ids: Ids) -> None:
    """Draws the id of every object that is larger than its label, at a place far from its border.

    Args:
        drawn: uint8 [H, W, 3] RGB, which is changed.
        ids: uint8 [H, W], 0 is background.
    """
    size = max(_SMALLEST, round(min(ids.shape) * _HEIGHT))
    step = max(1, min(ids.shape) // _ROWS)
    coarse = ids[step // 2 :: step, step // 2 :: step]
    depth = _depths(coarse)
    counts = np.bincount(coarse.ravel(), minlength=256)
    for object_id in (np.flatnonzero(counts[1:]) + 1).tolist():
        stamp = _stamp(str(object_id), size)
        if counts[object_id] * step**2 > stamp.dark.size:
            row, column = _place(coarse == object_id, depth)
            _put(stamp, drawn, row * step + step // 2, column * step + step // 2)


def _depths(ids: Ids) -> npt.NDArray[np.uint8]:
    """The distance of every pixel [H, W] to another id or to the edge, in steps to neighbors, also diagonal ones."""
    left = np.pad(ids > 0, 1)
    same_right, same_below = ids[:, 1:] == ids[:, :-1], ids[1:] == ids[:-1]
    inner = left[1:-1, 1:-1]
    inner[:, 1:] &= same_right
    inner[:, :-1] &= same_right
    inner[1:] &= same_below
    inner[:-1] &= same_below
    depth = (ids > 0).astype(np.uint8)
    while inner.any():
        depth += inner
        rows = left[:-2] & left[1:-1] & left[2:]
        inner[:] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return depth


def _place(inside: npt.NDArray[np.bool_], depth: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Of the pixels far from the border, the one nearest to the center, so that a label moves little."""
    rows, columns = np.nonzero(inside)
    depths = depth[rows, columns]
    off_center = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    best = np.where(depths >= _DEEP * depths.max(), off_center, np.inf).argmin()
    return int(rows[best]), int(columns[best])


def _put(stamp: _Stamp, drawn: npt.NDArray[np.uint8], row: int, column: int) -> None:
    """Draws a stamp with its center at a pixel, moved into the frame if it would reach beyond."""
    height, width = stamp.dark.shape
    top = min(max(row - height // 2, 0), drawn.shape[0] - height)
    left = min(max(column - width // 2, 0), drawn.shape[1] - width)
    if top < 0 or left < 0:  # a frame smaller than the label
        return
    under = drawn[top : top + height, left : left + width]
    under[:] = (under * (255 - stamp.dark[..., None]) + 255 * stamp.light[..., None]) // 255


@cache
def _stamp(text: str, size: int) -> _Stamp:
    font = ImageFont.load_default(size)
    stroke = max(1, size // 9)
    box = font.getbbox(text, stroke_width=stroke)
    left, top, right, bottom = (round(side) for side in box)

    def coverage(width: int) -> npt.NDArray[np.uint16]:
        image = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(image).text((-left, -top), text, 255, font, stroke_width=width)
        return np.asarray(image).astype(np.uint16)

    light = coverage(0)
    return _Stamp(light, np.maximum(coverage(stroke), light))
