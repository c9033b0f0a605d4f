"""A picture file as a mask: object ids as they are, or one object in black and white, however it was saved.

H x W pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video.pillow import UPRIGHT, opened, orientation, seen_size, upright
from stm_fast.video.soft_edges import HALF, WHITE, count_values, find_shades, is_black_and_white

Ids = npt.NDArray[np.uint8]

_LOSSY = ("JPEG", "MPO", "WEBP")
_FORMATS = ("PNG", *_LOSSY)
_ID_MODES = ("P", "L", "1")
_COLOR_MODES = ("RGB", "RGBA", "LA")
# pixels of a mask that is not known to be as large as its frames: 8K UHD has less
_MOST_PIXELS = 2**25
# of a part of a picture of colors
_STRIP_PIXELS = 2**20
# times larger or smaller than the frames
_MOST_SCALED = 8
# of a color channel: what rounding makes of a shade, and what JPEG does
_NEAR, _NEAR_LOSSY = 4, 32
# of a palette: what is as good as black
_DARK = 16


class MaskPicture(NamedTuple):
    """What a file holds.

    Attributes:
        ids: uint8 [H, W], 0 is background.
        palette: colors of the ids as in the file, RGB, at most 256 x 3 bytes; None where it has none.
        note: what was found and what was made of it, where ids were not taken as they are.
    """

    ids: Ids
    palette: bytes | None
    note: str | None = None


def read_ids(path: Path) -> MaskPicture:
    """The values of a palette or grey PNG as they are. Raises InputError where it is none."""
    with opened(path, "mask") as picture:
        if picture.format != "PNG" or picture.mode not in _ID_MODES:
            found = f"{picture.format} of mode {picture.mode}"
            raise InputError(f"{path}: mask is {found}, expected a palette or grey PNG of object ids")
        return _ids(picture)


def read_mask_picture(path: Path, size: tuple[int, int] | None = None) -> MaskPicture:
    """Object ids, or one object in black and white. What is neither, or could be both, is refused.

    Args:
        path: PNG, JPEG or WebP.
        size: W, H of the frames; a mask of their aspect ratio is brought to it. None takes a mask of any size.

    Raises InputError: no such file, a broken one, one of another aspect ratio, colors, shades that are more than the
    edges of one object, a background that is not 0, more than 8 bits.
    """
    with opened(path, "mask") as picture:
        _check_kind(path, picture)
        _check_size(path, seen_size(picture), size)
        turn = orientation(picture)
        if picture.mode in _COLOR_MODES or picture.format != "PNG":
            found = _one_object(path, picture)
        else:
            found = _ids(picture)
            if found.palette is not None:
                _check_background(path, found.ids, found.palette)
            found = _without_soft_edges(path, found)
    if turn != UPRIGHT:
        found = found._replace(ids=upright(Image.fromarray(found.ids), turn))
    return found if size is None else _resized(found, size)


def _check_kind(path: Path, picture: Image.Image) -> None:
    if picture.format not in _FORMATS:
        raise InputError(f"{path}: mask is {picture.format}, expected a palette PNG whose values are object ids")
    if picture.mode not in _ID_MODES + _COLOR_MODES:
        raise InputError(f"{path}: mask has mode {picture.mode}, expected 8 bits a pixel")


def _check_size(path: Path, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """Looks at the header alone: nothing is decoded yet."""
    text = "x".join(map(str, found))
    if found != expected and found[0] * found[1] > _MOST_PIXELS:
        raise InputError(f"{path}: mask of {text}, expected at most {_MOST_PIXELS} pixels")
    if expected is None or found == expected:
        return
    scale = expected[0] / found[0]
    (least, most), (least_expected, most_expected) = _aspect(found), _aspect(expected)
    alike = least <= most_expected and least_expected <= most
    if not alike or not 1 / _MOST_SCALED <= scale <= _MOST_SCALED:
        raise InputError(f"{path}: mask of {text}, expected {expected[0]}x{expected[1]} as the frames")


def _aspect(size: tuple[int, int]) -> tuple[float, float]:
    """The least and the greatest aspect ratio of what has these sides after rounding."""
    width, height = size
    return (width - 0.5) / (height + 0.5), (width + 0.5) / (height - 0.5)


def _ids(picture: Image.Image) -> MaskPicture:
    step = _grey_step(picture)
    ids = np.array(picture, np.uint8)
    if step > 1:
        ids //= step
    palette = bytes(picture.getpalette("RGB") or ()) if picture.mode == "P" else None
    return MaskPicture(ids, palette)


def _grey_step(picture: Image.Image) -> np.uint8:
    """What Pillow makes of 1 in a PNG that is opened and not read: it spreads 2 and 4 bits of grey over 0 to 255."""
    raw_mode = picture.tile[0][3] if picture.tile else ""  # type: ignore[attr-defined]
    return np.uint8({"L;2": 85, "L;4": 17}.get(str(raw_mode), 1))


def _check_background(path: Path, ids: Ids, palette: bytes) -> None:
    """A program that chooses the palette by itself makes the background any index."""
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    used = np.flatnonzero(count_values(ids)[: len(colors)])
    brightest = colors[used].max(1)
    # several are no color of their own, but what fills a palette
    black = next((index for most in (0, _DARK) if len(index := used[brightest <= most]) == 1), None)
    if black is not None and black[0] and colors[0].max() > _DARK:
        first = ", ".join(map(str, colors[0].tolist()))
        raise InputError(
            f"{path}: index 0, the background, has the color ({first}), and black is index {black[0]}; "
            "expected black at index 0, or a black-and-white picture without palette"
        )


def _without_soft_edges(path: Path, mask: MaskPicture) -> MaskPicture:
    shades = find_shades(mask.ids)
    if shades is None:
        return mask
    if not shades.one_object:
        where = f"{_listed(shades.edges)} occur along edges only, beside {_listed(shades.others)}"
        raise InputError(f"{path}: mask looks anti-aliased: {where}; save it with hard edges")
    brightest = max(shades.others)
    ids = np.where(mask.ids >= (brightest + 1) // 2, np.uint8(brightest), np.uint8(0))
    note = f"found soft edges, took for object {brightest} what is at least half as bright"
    return MaskPicture(ids, mask.palette, note)


def _one_object(path: Path, picture: Image.Image) -> MaskPicture:
    """A picture of black and one other color as object 255."""
    lossy = picture.format in _LOSSY
    kind = f"{picture.format} of mode {picture.mode}"
    grey = _brightness(picture, _NEAR_LOSSY if lossy else _NEAR)
    if grey is None:
        expected = "expected black and one other color, or a palette or grey PNG of object ids"
        raise InputError(f"{path}: mask has colors ({kind}), {expected}")
    if not is_black_and_white(grey) and (lossy or not _is_blurred(grey)):
        raise InputError(f"{path}: mask is {kind} in many shades, expected black and white, or a PNG of object ids")
    ids = np.where(grey >= HALF, np.uint8(WHITE), np.uint8(0))
    return MaskPicture(ids, None, f"found one color beside the background ({kind}), took it for object {WHITE}")


def _is_blurred(grey: Ids) -> bool:
    """Whether a picture is one object with edges so wide that it has few pixels of black and white by them."""
    shades = find_shades(grey)
    return shades is not None and shades.one_object


def _brightness(picture: Image.Image, tolerance: int) -> Ids | None:
    """The shades [H, W] between black, 0, and the one other color, 255; None where there are more colors.

    What is transparent is black; where all that is opaque is black, it is the object.
    """
    color = max((_brightest(part) for part in _strips(picture)), key=max)
    if max(color) == 0:
        alpha = np.array(picture.convert("RGBA").getchannel("A"))
        return alpha if alpha.min() == 0 else np.zeros_like(alpha)
    shades = np.empty(picture.size[::-1], np.uint8)  # [H, W]
    row = 0
    for part in _strips(picture):
        share = (part.max(-1) / np.float32(max(color)))[..., None]  # [h, W, 1]
        if np.abs(part - share * np.array(color, np.float32)).max() > tolerance:
            return None
        shades[row : row + len(part)] = np.rint(share[..., 0] * WHITE)
        row += len(part)
    return shades


def _strips(picture: Image.Image) -> Iterator[npt.NDArray[np.uint16]]:
    """The picture on black [h, W, 3] from top to bottom, in parts, of which each takes many bytes a pixel."""
    width, height = picture.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        rgba = np.array(picture.crop((0, top, width, min(height, top + rows))).convert("RGBA"))  # [h, W, 4]
        yield (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + WHITE // 2) // WHITE


def _brightest(rgb: npt.NDArray[np.uint16]) -> tuple[int, ...]:
    return tuple(rgb.reshape(-1, 3)[rgb.max(-1).argmax()].tolist())


def _resized(mask: MaskPicture, size: tuple[int, int]) -> MaskPicture:
    """The mask at W, H by the nearest neighbor."""
    height, width = mask.ids.shape
    if (width, height) == size:
        return mask
    ids = np.array(Image.fromarray(mask.ids).resize(size, Image.Resampling.NEAREST))
    note = f"found {width}x{height}, brought it to {size[0]}x{size[1]} as the frames"
    return MaskPicture(ids, mask.palette, note if mask.note is None else f"{mask.note}; {note}")


def _listed(values: set[int]) -> str:
    """A few of them, in words."""
    first = ", ".join(map(str, sorted(values)[:4]))
    return (f"values {first}" if len(values) > 1 else f"value {first}") + (
        f" and {len(values) - 4} more" if len(values) > 4 else ""
    )
