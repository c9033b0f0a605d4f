"""Masks of object ids as palette PNGs, the format of DAVIS and YouTube-VOS: value = object id, 0 = background."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video.pillow import decoding
from stm_fast.whole_file import whole_file

# more ids than this in one mask are the grey levels of soft edges, not objects
MAX_IDS = 20


def _davis_palette() -> bytes:
    """Bit k of id // 8**j is bit 7 - j of channel k: the colour map of PASCAL VOC, which DAVIS took over."""
    colours = bytearray()
    for label in range(256):
        for channel in range(3):
            colours.append(sum((label >> (3 * level + channel) & 1) << (7 - level) for level in range(3)))
    return bytes(colours)


DAVIS_PALETTE = _davis_palette()  # 256 x RGB


@dataclass(frozen=True, eq=False)
class Mask:
    """Object ids of one frame.

    Attributes:
        ids: uint8 [H, W], 0 is background.
        palette: colours of the ids as in the file, RGB, at most 256 x 3 bytes; None where the file has none.
    """

    ids: npt.NDArray[np.uint8]
    palette: bytes | None


def read_mask(path: str | Path, most_ids: int | None = MAX_IDS) -> Mask:
    """Read a palette or grey PNG whose values are object ids. The ids are kept as they are.

    A grey 0/255 mask is one object whose id is 255. A mask without any object is read too: see `require_objects`.

    Args:
        path: the PNG.
        most_ids: a mask with more is taken for one with soft edges; None for masks that were written here.

    Raises InputError: no such file, not a PNG, colours instead of ids, more than 8 bits, anti-aliased edges.
    """
    path = Path(path)
    with decoding(path, "mask"), Image.open(path) as picture:
        _check_format(path, picture)
        step = _grey_step(picture)
        ids = np.array(picture).astype(np.uint8) // step  # [H, W]
        palette = bytes(picture.getpalette("RGB") or ()) if picture.mode == "P" else None
    count = len(object_ids(ids))
    if most_ids is not None and count > most_ids:
        raise InputError(
            f"{path}: mask looks anti-aliased: {count} different ids, expected at most {most_ids}; "
            "save it with hard edges"
        )
    return Mask(ids, palette)


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
    counts = np.bincount(ids.ravel(), minlength=256)
    return (np.flatnonzero(counts[1:]) + 1).tolist()


def require_objects(mask: Mask, path: str | Path) -> None:
    """Raise InputError where the mask of this file shows no object."""
    if not mask.ids.any():
        raise InputError(f"{path}: mask without objects: every pixel is 0 (background)")


def check_mask_size(mask: Mask, path: str | Path, width: int, height: int) -> None:
    """Raise InputError where the mask of this file has not the size of the frames."""
    if mask.ids.shape != (height, width):
        found_height, found_width = mask.ids.shape
        raise InputError(f"{path}: mask of {found_width}x{found_height}, expected {width}x{height} as the frames")


def _check_format(path: Path, picture: Image.Image) -> None:
    if picture.format != "PNG":
        raise InputError(f"{path}: mask is {picture.format}, expected a palette PNG whose values are object ids")
    if picture.mode in ("RGB", "RGBA", "LA"):
        raise InputError(f"{path}: mask has colours ({picture.mode}), expected a palette or grey PNG of object ids")
    if picture.mode not in ("P", "L", "1"):
        raise InputError(f"{path}: mask has mode {picture.mode}, expected 8 bits a pixel")


def _grey_step(picture: Image.Image) -> np.uint8:
    """What Pillow makes of 1 in a PNG that is opened and not read: it spreads 2 and 4 bits of grey over 0 to 255."""
    raw_mode = picture.tile[0][3] if picture.tile else ""  # type: ignore[attr-defined]
    return np.uint8({"L;2": 85, "L;4": 17}.get(str(raw_mode), 1))


def _check_ids(ids: npt.NDArray[np.uint8]) -> None:
    if ids.dtype != np.uint8:
        raise TypeError(f"ids: dtype {ids.dtype}, expected uint8")
    if ids.ndim != 2:
        raise ValueError(f"ids: shape {ids.shape}, expected [H, W]")
