"""The size of a mask that a user gives: that of the frames, or one with their aspect ratio."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError

# pixels of a mask whose frame size is not known; 8K UHD has fewer
_MAX_PIXELS = 2**25
# how many times larger or smaller than the frames a mask may be
_MAX_SCALE = 8


def check_mask_size(label: str | Path, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """Checks the size W, H of a mask before it is decoded. Raises InputError, which starts with `label`.

    Args:
        expected: the size of the frames; None accepts any that is not huge.
    """
    text = "x".join(map(str, found))
    if found != expected and found[0] * found[1] > _MAX_PIXELS:
        raise InputError(f"{label}: mask of {text}, expected at most {_MAX_PIXELS} pixels")
    if expected is None or found == expected:
        return
    scale = expected[0] / found[0]
    (least, most), (least_expected, most_expected) = _aspect(found), _aspect(expected)
    alike = least <= most_expected and least_expected <= most
    if not alike or not 1 / _MAX_SCALE <= scale <= _MAX_SCALE:
        raise InputError(f"{label}: mask of {text}, expected {expected[0]}x{expected[1]} like the frames")


def to_size(ids: npt.NDArray[np.uint8], size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], str | None]:
    """Ids [H, W] resized to W, H by nearest neighbor, and a note if they had another size."""
    height, width = ids.shape
    if (width, height) == size:
        return ids, None
    resized = np.array(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
    return resized, f"found {width}x{height}, resized it to {size[0]}x{size[1]} like the frames"


def _aspect(size: tuple[int, int]) -> tuple[float, float]:
    """The smallest and the largest aspect ratio whose sides round to these."""
    width, height = size
    return (width - 0.5) / (height + 0.5), (width + 0.5) / (height - 0.5)
