"""Still pictures with masks: folders as `JPEGImages` and `Annotations`, and pairs of globs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stm_fast.data.pictures import shot_of
from stm_fast.data.raw import Bytes, Shot
from stm_fast.data.sbd import read_mat
from stm_fast.errors import InputError, require_folder
from stm_fast.listing import by_stem, list_images, list_masks, natural_key
from stm_fast.video import has_void, object_ids, read_mask, without_void
from stm_fast.video.image_file import open_image
from stm_fast.whole_file import same_file

_HALF = 128
# ids, or with transparency, which may be the background
_NOT_GREY = ("P", "RGBA", "LA")


class Pair(NamedTuple):
    """The files of a still."""

    picture: Path
    mask: Path


class StillSource:
    """Stills to be set in motion.

    Args:
        pairs: pictures and their masks. A PNG with a palette, or a dark grey one, holds object ids; 255 beside others
            is void (VOC). A .mat file is one of SBD. Any other mask is a saliency map of one object, which is where it
            is at least half white.
    """

    moving = False

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def check_length(self, frames: int) -> None:
        """A still is as long as it is asked to be."""

    def length(self, index: int) -> int:
        """A still is one shot."""
        return 1

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Nothing here is random."""
        return [0] * frames

    def shot(self, index: int, time: int) -> Shot:
        """Still `index`."""
        pair = self._pairs[index]
        return shot_of(pair.picture, _read_ids(pair.mask), pair.mask)


def still_folder(root: Path) -> StillSource:
    """The pictures of `JPEGImages` whose masks lie in `Annotations` as PNGs of the same names.

    Raises InputError: a missing folder, no picture in it, a picture without mask, two of one name.
    """
    pictures, masks = root / "JPEGImages", root / "Annotations"
    for folder in (pictures, masks):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder, expected pictures in JPEGImages and masks in Annotations")
    return StillSource(_paired(list_images(pictures), list_masks(masks), str(pictures)))


def still_globs(root: Path, pictures: str, masks: str) -> StillSource:
    """Pictures and masks of the same stem, wherever two glob patterns below `root` find them.

    DUTS: ``still_globs(root, "DUTS-TR-Image/*.jpg", "DUTS-TR-Mask/*.png")``; MSRA10K, whose masks lie beside its
    pictures: ``still_globs(root, "Imgs/*.jpg", "Imgs/*.png")``; SBD: ``still_globs(root, "img/*.jpg", "inst/*.mat")``.

    Raises InputError: a missing folder, a pattern that is none, no picture found, a picture without mask, two pictures
    or two masks of one name, a file that both patterns find.
    """
    require_folder(root, "of stills")
    return StillSource(_paired(_found(root, pictures), _found(root, masks), pictures))


def _found(root: Path, pattern: str) -> list[Path]:
    try:
        return list(root.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{root}: found the pattern {pattern!r}, expected one of files below it ({error})") from None


def _paired(pictures: Iterable[Path], masks: Iterable[Path], place: str) -> list[Pair]:
    pictures_by_name, masks_by_name = by_stem(list(pictures)), by_stem(list(masks))
    if not pictures_by_name:
        raise InputError(f"{place}: no pictures found, expected jpg, png or webp files")
    for name, file in pictures_by_name.items():
        if name not in masks_by_name:
            raise InputError(f"{file}: no mask of this name")
        if same_file(file, masks_by_name[name]):
            raise InputError(f"{file}: found as picture and as mask, expected two files")
    files = sorted(pictures_by_name.values(), key=lambda file: natural_key(file.name))
    return [Pair(file, masks_by_name[file.stem]) for file in files]


def _read_ids(file: Path) -> Bytes:
    """Object ids [H, W] of a mask."""
    if file.suffix.lower() == ".mat":
        return read_mat(file)
    with open_image(file, "mask") as picture:
        grey = None if picture.mode in _NOT_GREY else np.array(picture.convert("L"))
    if grey is not None and grey.max() >= _HALF:
        return (grey >= _HALF).astype(np.uint8)
    ids = read_mask(file).ids
    return without_void(ids) if has_void(object_ids(ids)) else ids
