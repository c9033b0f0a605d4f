"""Masks of object ids as palette PNGs, the format of DAVIS and YouTube-VOS: value = object id, 0 = background."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video.mask_picture import MaskPicture, read_ids, read_mask_picture
from stm_fast.video.soft_edges import count_values
from stm_fast.whole_file import whole_file

# what is no object and no background either, as the border around the objects of PASCAL VOC
VOID = 255
VOID_NOTE = f"found {VOID} beside other ids, took it for void, which is background"


def _davis_palette() -> bytes:
    """Bit k of id // 8**j is bit 7 - j of channel k: the colour map of PASCAL VOC, which DAVIS took over."""
    colours = bytearray()
    for label in range(256):
        for channel in range(3):
            colours.append(sum((label >> (3 * level + channel) & 1) << (7 - level) for level in range(3)))
    return bytes(colours)


DAVIS_PALETTE = _davis_palette()  # 256 x RGB


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> MaskPicture:
    """A mask that somebody gives: object ids, or one object in black and white.

    The values of palette and grey PNGs are ids and stay as they are: a 0/255 mask is one object whose id is 255. Other
    pictures (RGB, RGBA, JPEG, WebP) are taken where they are black and one other color, for object 255; so are soft
    edges of one object, which is where it is at least half as bright as inside. `note` says what was made of the file.
    A mask without any object is read too: see `require_objects`.

    Args:
        path: the picture.
        size: W, H of the frames: a mask of their aspect ratio is brought to it, by the nearest neighbor.

    Raises InputError: no such file, a broken one, another aspect ratio, more colors, anti-aliased edges of several
    objects, a palette whose black is not index 0, more than 8 bits a pixel.
    """
    return read_mask_picture(Path(path), size)


def read_written_mask(path: str | Path) -> MaskPicture:
    """A palette or grey PNG, which a method wrote: every value is an id. Raises InputError where it is none."""
    return read_ids(Path(path))


def write_mask(path: str | Path, ids: npt.NDArray[np.uint8], palette: bytes | None = None) -> None:
    """Write object ids [H, W] uint8 as an 8-bit palette PNG, whole or not at all.

    Args:
        path: the PNG to write; an existing one is replaced.
        ids: uint8 [H, W].
        palette: RGB colours from id 0 on; ids beyond its end, or all with None, get the DAVIS colours.

    Raises InputError where the file cannot be written, TypeError or ValueError for other arrays.
    """
    _check_ids(ids)
    picture = Image.fromarray(np.ascontiguousarray(ids)).convert("L")
    picture.putpalette(full_palette(palette))
    with whole_file(Path(path)) as partial:
        picture.save(partial, format="PNG")


def full_palette(palette: bytes | None) -> bytes:
    """256 RGB colours, 768 bytes: the given ones, then the DAVIS ones of the remaining ids."""
    given = palette or b""
    return given[:768] + DAVIS_PALETTE[len(given) :]


def object_ids(ids: npt.NDArray[np.uint8]) -> list[int]:
    """The objects of a mask in increasing order, background left out."""
    return (np.flatnonzero(count_values(ids)[1:]) + 1).tolist()


def has_void(ids: Collection[int]) -> bool:
    """Whether 255, among all ids of a video, is void: it is beside other ids, and not because somebody counted so far.

    Alone it is the object of a black-and-white mask.
    """
    return VOID in ids and len(ids) > 1 and VOID - 1 not in ids


def without_void(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mask [H, W] with void as background."""
    return np.where(ids == VOID, np.uint8(0), ids)


def require_objects(ids: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Raise InputError where the mask of this file shows no object."""
    if not ids.any():
        raise InputError(f"{path}: mask without objects: every pixel is 0 (background)")


def _check_ids(ids: npt.NDArray[np.uint8]) -> None:
    if ids.dtype != np.uint8:
        raise TypeError(f"ids: dtype {ids.dtype}, expected uint8")
    if ids.ndim != 2:
        raise ValueError(f"ids: shape {ids.shape}, expected [H, W]")
