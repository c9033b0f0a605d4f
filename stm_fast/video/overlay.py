"""Objects drawn over a frame, for viewing."""

import numpy as np
import numpy.typing as npt

from stm_fast.video.masks import DAVIS_PALETTE, full_palette

# 255, pale gray in the DAVIS palette, is the object of a black-and-white mask
_DRAWN_PALETTE = DAVIS_PALETTE[:-3] + bytes((255, 0, 200))


def draw_overlay(
    image: npt.NDArray[np.uint8], ids: npt.NDArray[np.uint8], palette: bytes | None = None, alpha: float = 0.5
) -> npt.NDArray[np.uint8]:
    """Tints every object with its color and draws a one-pixel contour inside its border.

    Args:
        image: uint8 [H, W, 3] RGB; it is not changed.
        ids: uint8 [H, W], object ids, 0 is background.
        palette: RGB colors from id 0 on; if None, the DAVIS colors with a bright one for 255.
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
    colors = np.frombuffer(full_palette(palette or _DRAWN_PALETTE), np.uint8).reshape(256, 3)
    drawn = image.copy()  # [H, W, 3]
    inside = ids > 0  # [H, W]
    share = round(256 * alpha)
    tint = colors[ids[inside]].astype(np.uint16) * share  # [pixels, 3]
    drawn[inside] = (image[inside].astype(np.uint16) * (256 - share) + tint) >> 8
    contour = _contour(ids)
    # halfway to white: the DAVIS colors are dark
    drawn[contour] = colors[ids[contour]] // 2 + 128
    return drawn


def _contour(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Object pixels [H, W] with another id to the left, right, above or below; the edge of the image does not count."""
    across = ids[:, 1:] != ids[:, :-1]  # [H, W - 1]
    down = ids[1:] != ids[:-1]  # [H - 1, W]
    border = np.zeros(ids.shape, np.bool_)
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border & (ids > 0)
