"""Objects drawn over a frame, for viewing."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stm_fast.video.object_label import draw_labels
from stm_fast.video.overlay_colors import BRIGHT_COLORS, Colors, outline_colors, overlay_colors

Ids = npt.NDArray[np.uint8]  # [H, W]
Pixels = npt.NDArray[np.bool_]  # [H, W]

_CONTOUR = 1 / 230  # width relative to the shorter side of the frame
_OUTLINE = 1 / 480  # of the line around the contour
_STRIPE = 1 / 80


def draw_overlay(
    image: npt.NDArray[np.uint8], ids: Ids, palette: bytes | None = None, alpha: float = 0.5
) -> npt.NDArray[np.uint8]:
    """Tints every object with its color, and draws a contour inside its border, an outline around it, and its id.

    Lines and ids grow with the frame: a contour has 2 pixels at 480p. The ids 1 to 12 have colors of their own; the
    next ones have the same colors in stripes, see `_between_stripes`.

    Args:
        image: uint8 [H, W, 3] RGB; it is not changed.
        ids: uint8 [H, W], object ids, 0 is background.
        palette: RGB colors from id 0 on. Those that are the DAVIS color of their id are replaced by brighter ones.
        alpha: opacity of the color inside an object, 0 to 1.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: the shapes do not match, or alpha is outside 0 to 1.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != ids.shape:
        raise ValueError(f"image: shape {image.shape}, ids: shape {ids.shape}, expected [H, W, 3] and [H, W]")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha}, expected 0 to 1")
    drawn = image.copy()  # [H, W, 3]
    shorter = min(ids.shape)
    window = _window(ids, _outline_width(shorter))
    if window is not None:
        _draw_objects(drawn[window], ids[window], overlay_colors(palette), alpha, shorter)
        draw_labels(drawn, ids)
    return drawn


def _window(ids: Ids, margin: int) -> tuple[slice, slice] | None:
    """The rows and columns of all objects, and `margin` pixels around them; None without objects."""
    sides = []
    for axis in (1, 0):
        found = np.flatnonzero(ids.any(axis))
        if not len(found):
            return None
        sides.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + 1 + margin))
    return sides[0], sides[1]


def _draw_objects(drawn: npt.NDArray[np.uint8], ids: Ids, colors: Colors, alpha: float, shorter: int) -> None:
    """Draws objects without their ids into a part of a frame, whose shorter side has `shorter` pixels."""
    inside = ids > 0
    tinted = inside
    if ids.max() > len(BRIGHT_COLORS):
        tinted = inside & ~_between_stripes(ids, max(2, round(shorter * _STRIPE)))
    _tint(drawn, ids, tinted, colors, alpha)
    contour = _grown(_border(ids), max(1, round(shorter * _CONTOUR)) - 1) & inside
    _paint(drawn, contour, colors, ids)
    near = _grown(ids, _outline_width(shorter))
    _paint(drawn, (near > 0) & ~inside, outline_colors(colors), near)


def _outline_width(shorter: int) -> int:
    return max(1, round(shorter * _OUTLINE))


def _tint(drawn: npt.NDArray[np.uint8], ids: Ids, pixels: Pixels, colors: Colors, alpha: float) -> None:
    where = np.flatnonzero(pixels)
    share = round(256 * alpha)
    tint = colors.astype(np.uint16) * share  # [256, 3]
    rows, columns = np.divmod(where, ids.shape[1])
    before = drawn[rows, columns].astype(np.uint16)
    drawn[rows, columns] = (before * (256 - share) + tint.take(ids.ravel().take(where), axis=0)) >> 8


def _paint(drawn: npt.NDArray[np.uint8], pixels: Pixels, colors: Colors, ids: Ids) -> None:
    drawn[pixels] = colors.take(ids[pixels], axis=0)


def _border(ids: Ids) -> Pixels:
    """Object pixels [H, W] with another id to the left, right, above or below; the edge of the image does not count."""
    across = ids[:, 1:] != ids[:, :-1]  # [H, W - 1]
    down = ids[1:] != ids[:-1]  # [H - 1, W]
    border = np.zeros(ids.shape, np.bool_)
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border & (ids > 0)


def _grown(values: npt.NDArray[Any], steps: int) -> npt.NDArray[Any]:
    """The greatest value [H, W] within a distance; an octagon, because every second step is also diagonal."""
    for step in range(steps):
        grown = values.copy()
        np.maximum(grown[1:], values[:-1], out=grown[1:])
        np.maximum(grown[:-1], values[1:], out=grown[:-1])
        sides = grown.copy() if step % 2 else values
        np.maximum(grown[:, 1:], sides[:, :-1], out=grown[:, 1:])
        np.maximum(grown[:, :-1], sides[:, 1:], out=grown[:, :-1])
        values = grown
    return values


def _between_stripes(ids: Ids, width: int) -> Pixels:
    """The pixels [H, W] of objects 13 to 48 that are not tinted, which leaves stripes `width` pixels wide.

    They rise in objects 13 to 24, fall in 25 to 36, and cross in 37 to 48; then it starts over with plain colors.
    """
    rows, columns = np.ogrid[: ids.shape[0], : ids.shape[1]]
    rising, falling = ((columns + sign * rows) // width % 2 == 0 for sign in (1, -1))
    kind = np.arange(-1, 255) // len(BRIGHT_COLORS) % 4
    kinds = kind.astype(np.uint8)[ids]
    striped: npt.NDArray[np.bool_] = (kinds == 1) & rising | (kinds == 2) & falling | (kinds == 3) & (rising ^ falling)
    return striped
