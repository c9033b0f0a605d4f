"""Images of any depth as RGB with 8 bits per channel; all frames of a video are scaled in the same way.

Gray values of more than 8 bits, as of microscopes, rarely use the whole range of their type: the range of all frames is
scaled. Color of 16 bits does use it, as in film: the upper 8 bits are taken.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from stm_fast.errors import InputError
from stm_fast.video.image_file import is_deep, orientation, to_rgb, upright

# of the pixels of a frame, the darkest and the brightest, such as those of defective sensor elements
_EXTREME = 1e-4
# TIFF 6.0, sections 8 and 19
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED = 0, 2, 1


class GrayRange(NamedTuple):
    """The gray values that become 0 and 255."""

    black: float
    white: float

    def __str__(self) -> str:
        return f"{self.black:.6g} to {self.white:.6g}"

    def scale(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Values [H, W] as uint8 [H, W]; those outside the range are clipped."""
        if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # a table is several times as fast
            table = self.scale(np.arange(2**16))
            return table.take(values)
        above = np.clip(values.astype(np.float64), self.black, self.white) - self.black
        return np.rint(255 * above / (self.white - self.black or 1)).astype(np.uint8)


def range_of(frames: Iterable[tuple[object, npt.NDArray[Any]]]) -> GrayRange:
    """From black to white as the smallest and the largest value of all frames; 0.01% of each are left out at both ends.

    Args:
        frames: gray values [H, W], and what they are, for messages.

    Raises:
        InputError: values that are not finite.
    """
    black, white = np.inf, -np.inf
    for label, values in frames:
        if not np.isfinite(values).all():
            raise InputError(f"{label}: found values that are not finite, expected numbers")
        flat = values.reshape(-1)
        extreme = int(flat.size * _EXTREME)
        sorted_ends = np.partition(flat, (extreme, flat.size - 1 - extreme))
        black, white = min(black, float(sorted_ends[extreme])), max(white, float(sorted_ends[-1 - extreme]))
    return GrayRange(black, white)


def gray_values(image: Image.Image) -> npt.NDArray[Any]:
    """The values [H, W] of a deep image, upright; larger ones are brighter."""
    turn = orientation(image)
    values = upright(image, turn)
    tags = tags_of(image)
    if (
        values.dtype == np.int32
        and tags.get(_BITS_PER_SAMPLE) == (32,)
        and tags.get(_SAMPLE_FORMAT, (1,)) == (_UNSIGNED,)
    ):
        values = values.view(np.uint32)
    return -values.astype(np.float64) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values


def to_pixels(image: Image.Image, gray: GrayRange | None) -> npt.NDArray[np.uint8]:
    """The image as uint8 [H, W, 3] RGB, upright.

    Args:
        gray: of a deep image.
    """
    if gray is not None and is_deep(image):
        return np.repeat(gray.scale(gray_values(image))[:, :, None], 3, axis=2)
    # read before the pixels, like the size: metadata after the pixels of a PNG affects neither
    turn = orientation(image)
    return upright(to_rgb(image), turn)


def has_deep_color(image: Image.Image, file: Path) -> bool:
    """Whether Pillow takes the upper 8 of 16 bits of an opened image. Raises InputError if it would take others."""
    if is_deep(image):
        return False
    tags = tags_of(image)
    deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    if not deep and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8 and tags.get(_PLANAR) == _SEPARATE_PLANES:
        raise InputError(f"{file}: color of 16 bits in separate planes, expected interleaved color")
    return deep


def note_gray(source: object, gray: GrayRange) -> str:
    """A line that says how gray values become 8 bits."""
    return f"{source}: more than 8 bits per pixel: gray values from {gray} become 0 to 255, the same in all frames"


def note_color(source: object) -> str:
    """A line that says how color of 16 bits becomes 8 bits."""
    return f"{source}: 16 bits per channel: the upper 8 are used"


def tags_of(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF image by number; empty for another one."""
    return image.tag_v2 if isinstance(image, TiffImageFile) else {}
