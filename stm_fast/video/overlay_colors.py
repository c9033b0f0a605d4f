"""The colors of objects in an overlay, which stay apart on any background and for color-blind people."""

import numpy as np
import numpy.typing as npt

from stm_fast.video.masks import DAVIS_PALETTE

Colors = npt.NDArray[np.uint8]  # [256, 3], RGB by object id

# Found by search: of bright saturated colors, these have the largest CIEDE2000 distance between two of them, and to
# black, white and mid gray, as seen with normal vision (19) and with protanopia, deuteranopia or tritanopia (12.6; that
# of the first twelve DAVIS colors is 0.7). The first one differs most from the pixels of DAVIS that it tints; each
# further one is as far as possible from those before.
BRIGHT_COLORS = (
    (203, 33, 168),
    (255, 238, 0),
    (198, 152, 0),
    (255, 190, 255),
    (136, 153, 255),
    (2, 192, 193),
    (133, 84, 255),
    (59, 143, 91),
    (255, 105, 168),
    (60, 255, 190),
    (218, 49, 46),
    (156, 197, 122),
)
_BRIGHT = np.array([(0, 0, 0), *(BRIGHT_COLORS[index % len(BRIGHT_COLORS)] for index in range(255))], np.uint8)
_DAVIS = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)
# in every channel; padding of palettes and ramps of gray are so dark
_DARK = 32
_LUMA = np.array([77, 151, 28])  # of BT.601, in 256ths
_LIGHT = 96


def overlay_colors(palette: bytes | None = None) -> Colors:
    """The colors of a palette that were chosen for objects, and bright ones for the other ids.

    The DAVIS color of an id is no choice, because it is the default of all tools and too dark to see; neither is black.

    Args:
        palette: RGB from id 0 on, for some ids or all.
    """
    colors = _BRIGHT.copy()
    given = np.frombuffer((palette or b"")[:768], np.uint8).reshape(-1, 3)  # [ids, 3]
    chosen = (given != _DAVIS[: len(given)]).any(1) & (given >= _DARK).any(1)
    colors[: len(given)][chosen] = given[chosen]
    return colors


def outline_colors(colors: Colors) -> Colors:
    """For each color the one around it that it is seen against on any background: black, or white if it is dark."""
    dark = colors.astype(np.int64) @ _LUMA >> 8 < _LIGHT  # [256]
    return np.repeat(np.where(dark, 255, 0).astype(np.uint8)[:, None], 3, axis=1)
