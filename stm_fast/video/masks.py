"""Masks of object ids as palette PNGs, the format of DAVIS and YouTube-VOS: value = object id, 0 = background."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video.antialiasing import count_values
from stm_fast.whole_file import whole_file

# neither object nor background, such as the border around objects in PASCAL VOC
VOID = 255
# keyword and text in a PNG that says that its values are ids, even where one is a thin rim around another
EXACT = ("stm_fast", "object ids")
VOID_NOTE = f"found {VOID} next to other ids, treated as void, which is background"


def _davis_palette() -> bytes:
    """Bit k of id // 8**j is bit 7 - j of channel k: the color map of PASCAL VOC, which DAVIS uses too."""
    colors = bytearray()
    for label in range(256):
        for channel in range(3):
            colors.append(sum((label >> (3 * level + channel) & 1) << (7 - level) for level in range(3)))
    return bytes(colors)


DAVIS_PALETTE = _davis_palette()  # 256 x RGB


def write_mask(path: str | Path, ids: npt.NDArray[np.uint8], palette: bytes | None = None) -> None:
    """Writes object ids [H, W] uint8 as an 8-bit palette PNG, completely or not at all.

    Args:
        path: the PNG to write; an existing one is replaced.
        ids: uint8 [H, W].
        palette: RGB colors from id 0 on; ids past its end, or all if None, get the DAVIS colors.

    Raises:
        InputError: the file cannot be written.
        TypeError, ValueError: another dtype or shape.
    """
    image = palette_image(ids, palette)
    with whole_file(Path(path)) as partial:
        image.save(partial, format="PNG")


def palette_image(ids: npt.NDArray[np.uint8], palette: bytes | None = None) -> Image.Image:
    """The image that `write_mask` writes. Raises TypeError or ValueError for another dtype or shape."""
    _check_ids(ids)
    image = Image.fromarray(np.ascontiguousarray(ids)).convert("L")
    image.putpalette(full_palette(palette))
    return image


def full_palette(palette: bytes | None) -> bytes:
    """256 RGB colors, 768 bytes: the given ones, then the DAVIS colors of the remaining ids."""
    given = palette or b""
    return given[:768] + DAVIS_PALETTE[len(given) :]


def object_ids(ids: npt.NDArray[np.uint8]) -> list[int]:
    """The objects of a mask in increasing order, without the background."""
    return (np.flatnonzero(count_values(ids)[1:]) + 1).tolist()


def has_void(ids: Collection[int]) -> bool:
    """Whether 255, among all ids of a video, is void: there are other ids, and they do not run up to 254.

    Alone, it is the object of a black-and-white mask.
    """
    return VOID in ids and len(ids) > 1 and VOID - 1 not in ids


def without_void(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mask [H, W] with void as background."""
    return np.where(ids == VOID, np.uint8(0), ids)


def require_objects(ids: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Raises InputError if the mask of this file shows no object."""
    if not ids.any():
        raise InputError(f"{path}: mask without objects: every pixel is 0 (background)")


def _check_ids(ids: npt.NDArray[np.uint8]) -> None:
    if ids.dtype != np.uint8:
        raise TypeError(f"ids: dtype {ids.dtype}, expected uint8")
    if ids.ndim != 2:
        raise ValueError(f"ids: shape {ids.shape}, expected [H, W]")
