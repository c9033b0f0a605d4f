"""Still images with masks, from `JPEGImages` and `Annotations` or found by glob patterns."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stm_fast.data.sbd import read_mat
from stm_fast.data.source import Bytes, Frame, SingleFrameSource, file_frame
from stm_fast.errors import InputError, require_folder
from stm_fast.listing import by_stem, list_images, list_masks, natural_key
from stm_fast.video import has_void, object_ids, read_mask, without_void
from stm_fast.video.image_file import open_image
from stm_fast.whole_file import same_file

_HALF = 128
# ids, or with transparency, which may be the background
_NOT_GRAY = ("P", "RGBA", "LA")


class Pair(NamedTuple):
    """The files of a still image."""

    image: Path
    mask: Path


class ImageSource(SingleFrameSource):
    """Still images with masks.

    Args:
        pairs: images and their masks. A PNG with a palette, or a gray one without values of 128 and more, contains
            object ids; 255 next to other ids is void (VOC). A .mat file is a mask of SBD. Any other mask is a saliency
            map of one object: the pixels of at least 128.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def frame(self, index: int, time: int) -> Frame:
        """Image `index`."""
        pair = self._pairs[index]
        return file_frame(pair.image, _read_ids(pair.mask), pair.mask)


def image_source(root: Path, images: str | None = None, masks: str | None = None) -> ImageSource:
    """Pairs of images and masks of the same stem below a folder.

    Without patterns, images are in `JPEGImages` and masks, PNGs, in `Annotations`. DUTS: ``image_source(root,
    "DUTS-TR-Image/*.jpg", "DUTS-TR-Mask/*.png")``; MSRA10K, whose masks are next to its images: ``image_source(root,
    "Imgs/*.jpg", "Imgs/*.png")``; SBD: ``image_source(root, "img/*.jpg", "inst/*.mat")``.

    Args:
        images, masks: glob patterns, both or neither.

    Raises:
        InputError: a missing folder, an invalid pattern, no images, an image without a mask, two images or two masks of
            the same stem, or a file that is both.
    """
    if (images is None) != (masks is None):
        raise InputError(f"{root}: found a pattern of pictures or of masks alone, expected both or none")
    if images is not None and masks is not None:
        require_folder(root, "of images")
        return ImageSource(_paired(_found(root, images), _found(root, masks), images))
    folder, annotations = root / "JPEGImages", root / "Annotations"
    for place in (folder, annotations):
        if not place.is_dir():
            raise InputError(f"{place}: no such folder, expected images in JPEGImages and masks in Annotations")
    return ImageSource(_paired(list_images(folder), list_masks(annotations), str(folder)))


def _found(root: Path, pattern: str) -> list[Path]:
    try:
        return list(root.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{root}: found the pattern {pattern!r}, expected one of files below it ({error})") from None


def _paired(images: Iterable[Path], masks: Iterable[Path], place: str) -> list[Pair]:
    images_by_name, masks_by_name = by_stem(list(images)), by_stem(list(masks))
    if not images_by_name:
        raise InputError(f"{place}: no images found, expected jpg, png, webp or tif files")
    for name, file in images_by_name.items():
        if name not in masks_by_name:
            raise InputError(f"{file}: no mask of this name")
        if same_file(file, masks_by_name[name]):
            raise InputError(f"{file}: found as image and as mask, expected two files")
    files = sorted(images_by_name.values(), key=lambda file: natural_key(file.name))
    return [Pair(file, masks_by_name[file.stem]) for file in files]


def _read_ids(file: Path) -> Bytes:
    """Object ids [H, W] of a mask."""
    if file.suffix.lower() == ".mat":
        return read_mat(file)
    with open_image(file, "mask") as mask:
        gray = None if mask.mode in _NOT_GRAY else np.array(mask.convert("L"))
    if gray is not None and gray.max() >= _HALF:
        return (gray >= _HALF).astype(np.uint8)
    ids = read_mask(file).ids
    return without_void(ids) if has_void(object_ids(ids)) else ids
