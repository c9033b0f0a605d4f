"""Frames of a folder of images, in the natural order of their names."""

import logging
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, reading
from stm_fast.listing import by_stem, list_images
from stm_fast.video.frames import Frame, FrameReader
from stm_fast.video.image_file import is_deep, open_image, page_count, upright_size
from stm_fast.video.pixel_depth import gray_values, has_deep_color, note_color, note_gray, range_of, to_pixels

logger = logging.getLogger(__name__)

# a folder has no frame rate; this is that of DAVIS
FRAME_RATE = Fraction(24)


class ImageFolder(FrameReader):
    """The jpg, png, webp and tif files of a folder; "frame2" comes before "frame10". EXIF orientation is applied.

    The header of every image is read first, so that images of different sizes are refused before any work. Gray images
    of more than 8 bits are all read once before, see `stm_fast.video.pixel_depth`.

    Args:
        folder: of the images.
        masks: files that are not frames, even if they are in the folder.
        files: the images, in order, if they are not all those of the folder.

    Raises:
        InputError: no image, a damaged one, two with the same stem, different sizes, a TIFF of several pages, or a mask
            whose name could be that of a frame.
    """

    def __init__(self, folder: Path, masks: Iterable[Path] = (), files: list[Path] | None = None) -> None:
        self.path = folder
        self.name = folder.resolve().name
        self.frame_rate = FRAME_RATE
        self._files, self.left_out = _split_frames(folder, files or list_images(folder), masks)
        self.frame_count = len(self._files)
        self._indices = {file.stem: index for index, file in enumerate(self._files)}
        headers = list(map(_read_header, self._files))
        self.width, self.height = headers[0].size
        for file, header in zip(self._files, headers, strict=True):
            self._check_size(file, header.size)
        deep = [file for file, header in zip(self._files, headers, strict=True) if header.deep]
        self._gray = range_of((file, _read_gray(file)) for file in deep) if deep else None
        if self._gray is not None:
            logger.warning(note_gray(folder, self._gray))
        if any(header.deep_color for header in headers):
            logger.warning(note_color(folder))

    def forward(self, start: int = 0) -> Iterator[Frame]:
        return map(self._read, range(start, len(self._files)))

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        return map(self._read, reversed(range(len(self._files))[:before]))

    def index_of(self, name: str) -> int | None:
        return self._indices.get(name)

    def name_of(self, index: int) -> str:
        return self._files[index].stem

    def file_name(self, index: int) -> str:
        return self._files[index].name

    def _read(self, index: int) -> Frame:
        file = self._files[index]
        with open_image(file, deep=self._gray is not None) as image:
            # the file may have been replaced since
            self._check_size(file, upright_size(image))
            pixels = to_pixels(image, self._gray)
        return Frame(index, float(index / self.frame_rate), file.stem, pixels)

    def _check_size(self, file: Path, size: tuple[int, int]) -> None:
        if size != (self.width, self.height):
            expected = f"{self.width}x{self.height} like {self._files[0].name}"
            raise InputError(f"{file}: image of {size[0]}x{size[1]}, expected {expected}")


def _split_frames(folder: Path, found: list[Path], masks: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The frames among the images found for a folder, and the masks among them."""
    with reading(folder):
        known = {_identity(file) for file in masks if file.exists()}
        files = [file for file in found if _identity(file) not in known]
    left_out = sorted(set(found) - set(files))
    if not files:
        what = "no images besides the masks" if left_out else "no images in this folder"
        raise InputError(f"{folder}: {what}, expected jpg, png, webp or tif files")
    _check_names(files, left_out)
    return files, left_out


def _check_names(frames: list[Path], masks: list[Path]) -> None:
    named = by_stem(frames)
    numberings = {_numbering(name) for name in named}
    for mask in masks:
        if mask.stem not in named and _numbering(mask.stem) in numberings:
            raise InputError(f"{mask}: given as a mask, but named like a frame; expected a folder with frames only")


def _identity(file: Path) -> tuple[int, int]:
    """Equal for all names of one file."""
    facts = file.stat()
    return facts.st_dev, facts.st_ino


def _numbering(name: str) -> str:
    """Equal for names that differ only in their numbers."""
    return re.sub(r"\d+", "0", name.lower())


class _Header(NamedTuple):
    """What is known of an image before its pixels are decoded: its size once upright, and whether it has 16 bits."""

    size: tuple[int, int]
    deep: bool
    deep_color: bool


def _read_header(file: Path) -> _Header:
    with open_image(file, deep=True) as image:
        if image.format == "TIFF" and (pages := page_count(image)) > 1:
            raise InputError(f"{file}: found {pages} pages in a folder of images; segment this file by itself")
        return _Header(upright_size(image), is_deep(image), has_deep_color(image, file))


def _read_gray(file: Path) -> npt.NDArray[Any]:
    with open_image(file, deep=True) as image:
        return gray_values(image)


def read_frame(file: Path) -> npt.NDArray[np.uint8]:
    """The image uint8 [H, W, 3] RGB, upright; one of more than 8 bits is scaled by its own range.

    Raises InputError if it cannot be decoded.
    """
    with open_image(file, deep=True) as image:
        gray = range_of([(file, gray_values(image))]) if is_deep(image) else None
        return to_pixels(image, gray)
