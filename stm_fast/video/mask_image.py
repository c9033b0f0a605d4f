"""An image file as a mask: object ids as stored, or one object in black and white, however it was saved.

H x W pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video.antialiasing import HALF, WHITE, count_values, find_shades, is_black_and_white
from stm_fast.video.image_file import UPRIGHT, is_deep, open_image, orientation, upright, upright_size
from stm_fast.video.mask_size import check_mask_size, to_size
from stm_fast.video.masks import EXACT

Ids = npt.NDArray[np.uint8]

_LOSSY = ("JPEG", "MPO", "WEBP")
_FORMATS = ("PNG", "TIFF", *_LOSSY)
_ID_MODES = ("P", "L", "1")
_COLOR_MODES = ("RGB", "RGBA", "LA")
# pixels of a color image that are converted at a time
_STRIP_PIXELS = 2**20
# difference in a color channel that rounding, and that JPEG, may cause in a shade
_NEAR, _NEAR_LOSSY = 4, 32
# brightest palette entry that counts as black
_DARK = 16


class MaskImage(NamedTuple):
    """The content of a mask file.

    Attributes:
        ids: uint8 [H, W], 0 is background.
        palette: colors of the ids as in the file, RGB, at most 256 x 3 bytes; None if it has none.
        note: what was found and how it was interpreted, if the ids were not taken as stored.
    """

    ids: Ids
    palette: bytes | None
    note: str | None = None


def read_written_mask(path: str | Path) -> MaskImage:
    """A palette or grayscale PNG written by a segmentation method: all values are ids. Raises InputError for others."""
    path = Path(path)
    with open_image(path, "mask") as image:
        if image.format != "PNG" or image.mode not in _ID_MODES:
            found = f"{image.format} of mode {image.mode}"
            raise InputError(f"{path}: mask is {found}, expected a palette or grayscale PNG of object ids")
        return _ids(image)


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> MaskImage:
    """A mask given by the user: object ids, or one object in black and white. Anything ambiguous is refused.

    The values of palette and grayscale PNGs and TIFFs are ids and are kept: the object of a 0/255 mask is 255. Other
    images (RGB, RGBA, JPEG, WebP) must be black and one other color, which becomes object 255. Soft edges of one object
    are accepted: pixels at least half as bright as its inside belong to it, unless the file says that it holds ids
    (`stm_fast.video.masks.EXACT`). `note` says how the file was interpreted.
    A mask without any object is read too: see `require_objects`.

    Args:
        path: the image.
        size: W, H of the frames: a mask with their aspect ratio is resized to it, by nearest neighbor. None accepts a
            mask of any size.

    Raises:
        InputError: no such file, a damaged one, another aspect ratio, more colors, anti-aliased edges of several
            objects, a palette whose black is not index 0, or ids above 255.
    """
    path = Path(path)
    with open_image(path, "mask", deep=True) as image:
        return mask_of_image(path, image, size)


def mask_of_image(label: str | Path, image: Image.Image, size: tuple[int, int] | None) -> MaskImage:
    """`read_mask` for an opened image, or for the current page of one; `label` names it in messages."""
    _check_kind(label, image)
    check_mask_size(label, upright_size(image), size)
    turn = orientation(image)
    if image.mode in _COLOR_MODES or image.format in _LOSSY:
        found = _one_object(label, image)
    else:
        found = MaskImage(_deep_ids(label, image), None) if is_deep(image) else _ids(image)
        if found.palette is not None:
            _check_background(label, found.ids, found.palette)
        if image.info.get(EXACT[0]) != EXACT[1]:
            found = _without_soft_edges(label, found)
    if turn != UPRIGHT:
        found = found._replace(ids=upright(Image.fromarray(found.ids), turn))
    return found if size is None else resized(found, size)


def resized(mask: MaskImage, size: tuple[int, int]) -> MaskImage:
    """The mask resized to W, H by nearest neighbor, with a note."""
    ids, how = to_size(mask.ids, size)
    return MaskImage(ids, mask.palette, "; ".join(filter(None, (mask.note, how))) or None)


def _check_kind(label: str | Path, image: Image.Image) -> None:
    if image.format not in _FORMATS:
        raise InputError(f"{label}: mask is {image.format}, expected a palette PNG whose values are object ids")
    if image.mode not in _ID_MODES + _COLOR_MODES and not is_deep(image):
        raise InputError(f"{label}: mask has mode {image.mode}, expected one channel of object ids, or black and white")


def _ids(image: Image.Image) -> MaskImage:
    step = _gray_step(image)
    ids = np.array(image, np.uint8)
    if step > 1:
        ids //= step
    palette = bytes(image.getpalette("RGB") or ()) if image.mode == "P" else None
    return MaskImage(ids, palette)


def _deep_ids(label: str | Path, image: Image.Image) -> Ids:
    """Ids that are stored in 16 or 32 bits, as whole numbers or not."""
    values = np.array(image)
    least, most = values.min(), values.max()
    if most > WHITE and np.isin(values, (0, most)).all():
        return np.where(values > 0, np.uint8(WHITE), np.uint8(0))  # black and white
    # false for a NaN too
    if not (least >= 0 and most <= WHITE and (values == np.rint(values)).all()):
        raise InputError(f"{label}: mask has values from {least:g} to {most:g}, expected object ids from 0 to {WHITE}")
    return values.astype(np.uint8)


def _gray_step(image: Image.Image) -> np.uint8:
    """The factor by which Pillow multiplies 2-bit and 4-bit gray values, to spread them over 0 to 255."""
    raw_mode = image.tile[0][3] if image.tile else ""  # type: ignore[attr-defined]
    return np.uint8({"L;2": 85, "L;4": 17}.get(str(raw_mode), 1))


def _check_background(label: str | Path, ids: Ids, palette: bytes) -> None:
    """Refuses a black background at an index other than 0, as written by programs that choose their own palette."""
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    used = np.flatnonzero(count_values(ids)[: len(colors)])
    brightest = colors[used].max(1)
    # several black entries only pad the palette
    black = next((index for most in (0, _DARK) if len(index := used[brightest <= most]) == 1), None)
    if black is not None and black[0] and colors[0].max() > _DARK:
        first = ", ".join(map(str, colors[0].tolist()))
        raise InputError(
            f"{label}: index 0, the background, has the color ({first}), and black is index {black[0]}; "
            "expected black at index 0, or a black-and-white image without a palette"
        )


def _without_soft_edges(label: str | Path, mask: MaskImage) -> MaskImage:
    shades = find_shades(mask.ids)
    if shades is None:
        return mask
    if not shades.one_object:
        where = f"{_listed(shades.edges)} occur only along edges, next to {_listed(shades.others)}"
        raise InputError(f"{label}: mask looks anti-aliased: {where}; save it with hard edges")
    brightest = max(shades.others)
    ids = np.where(mask.ids >= (brightest + 1) // 2, np.uint8(brightest), np.uint8(0))
    the_object = "the object" if brightest == WHITE else f"object {brightest}"
    note = f"found soft edges, assigned pixels at least half as bright to {the_object}"
    return MaskImage(ids, mask.palette, note)


def _one_object(label: str | Path, image: Image.Image) -> MaskImage:
    """An image of black and one other color, as object 255."""
    lossy = image.format in _LOSSY
    kind = f"{image.format} of mode {image.mode}"
    gray = _brightness(image, _NEAR_LOSSY if lossy else _NEAR)
    if gray is None:
        expected = "expected black and one other color, or a palette or grayscale PNG of object ids"
        raise InputError(f"{label}: mask has colors ({kind}), {expected}")
    if not is_black_and_white(gray) and (lossy or not _is_blurred(gray)):
        raise InputError(f"{label}: mask is {kind} in many shades, expected black and white, or a PNG of object ids")
    ids = np.where(gray >= HALF, np.uint8(WHITE), np.uint8(0))
    return MaskImage(ids, None, f"found one color besides the background ({kind}), treated it as one object")


def _is_blurred(gray: Ids) -> bool:
    """Whether an image is one object whose edges are so wide that few pixels near them are black or white."""
    shades = find_shades(gray)
    return shades is not None and shades.one_object


def _brightness(image: Image.Image, tolerance: int) -> Ids | None:
    """The shades [H, W] between black, 0, and the one other color, 255; None if there are more colors.

    Transparent pixels are black; if all opaque pixels are black, they are the object.
    """
    color = max((_brightest(part) for part in _strips(image)), key=max)
    if max(color) == 0:
        alpha = np.array(image.convert("RGBA").getchannel("A"))
        return alpha if alpha.min() == 0 else np.zeros_like(alpha)
    shades = np.empty(image.size[::-1], np.uint8)  # [H, W]
    row = 0
    for part in _strips(image):
        share = (part.max(-1) / np.float32(max(color)))[..., None]  # [h, W, 1]
        if np.abs(part - share * np.array(color, np.float32)).max() > tolerance:
            return None
        shades[row : row + len(part)] = np.rint(share[..., 0] * WHITE)
        row += len(part)
    return shades


def _strips(image: Image.Image) -> Iterator[npt.NDArray[np.uint16]]:
    """The image on black [h, W, 3], from top to bottom in strips, because the conversion takes many bytes per pixel."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        rgba = np.array(image.crop((0, top, width, min(height, top + rows))).convert("RGBA"))  # [h, W, 4]
        yield (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + WHITE // 2) // WHITE


def _brightest(rgb: npt.NDArray[np.uint16]) -> tuple[int, ...]:
    return tuple(rgb.reshape(-1, 3)[rgb.max(-1).argmax()].tolist())


def _listed(values: set[int]) -> str:
    """At most four of them, in words."""
    first = ", ".join(map(str, sorted(values)[:4]))
    return (f"values {first}" if len(values) > 1 else f"value {first}") + (
        f" and {len(values) - 4} more" if len(values) > 4 else ""
    )
