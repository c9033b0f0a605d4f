"""Frames of a TIFF file: its pages, also those of a stack that ImageJ or another microscopy program wrote."""

import logging
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL.Image import Image

from stm_fast.errors import InputError, reading
from stm_fast.video.frames import Frame, NumberedFrames
from stm_fast.video.image_file import TIFF_STARTS, is_deep, open_image, page_count, turn_to, upright_size
from stm_fast.video.image_folder import FRAME_RATE
from stm_fast.video.pixel_depth import (
    GrayRange,
    gray_values,
    has_deep_color,
    note_color,
    note_gray,
    range_of,
    tags_of,
    to_pixels,
)

logger = logging.getLogger(__name__)

_DESCRIPTION, _SAMPLES_PER_PIXEL = 270, 277
# SizeC="2" in the XML of OME is channels=2 in the lines of ImageJ
_OME_AXES = {"C": "channels", "Z": "slices", "T": "frames"}
_OME_AXIS = re.compile(r'\bSize([CZT])="(\d{1,9})"')


def is_tiff(path: Path) -> bool:
    """Whether a file starts as TIFF files do."""
    with reading(path), path.open("rb") as file:
        return file.read(4) in TIFF_STARTS


class TiffStack(NumberedFrames):
    """The pages of a TIFF file, as a video at 24 frames per second, which has one channel or is RGB.

    The headers of all pages are read first. Gray pages of more than 8 bits are scaled by the display range that ImageJ
    stored, or else by the range of all pages, see `stm_fast.video.pixel_depth`; they are all read once for that.

    Raises:
        InputError: a damaged file, pages of different sizes, several channels, or slices at each of several times.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = self.label = path
        self.name = path.stem
        self.frame_rate = FRAME_RATE
        self._gray: GrayRange | None = None
        with open_image(path, "TIFF file", deep=True) as image:
            self.frame_count = page_count(image)
            self.width, self.height = upright_size(image)
            self._deep = is_deep(image)
            stated = _stated(image)
            _check_axes(path, stated, self.frame_count)
            deep_color = False
            for page in range(self.frame_count):
                self._turn_to(image, page)
                deep_color |= has_deep_color(image, path)
            if deep_color:
                logger.warning(note_color(path))
            if self._deep:
                self._gray = self._range(image, stated)
                logger.warning(note_gray(path, self._gray))

    def forward(self, start: int = 0) -> Iterator[Frame]:
        return self._pages(range(start, self.frame_count or 0))

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        return self._pages(reversed(range(self.frame_count or 0)[:before]))

    def _pages(self, indices: Iterable[int]) -> Iterator[Frame]:
        with open_image(self.path, "TIFF file", deep=True) as image:
            for index in indices:
                self._turn_to(image, index)
                with self._decoding(index):
                    pixels = to_pixels(image, self._gray)
                yield Frame(index, float(index / self.frame_rate), self.name_of(index), pixels)

    def _turn_to(self, image: Image, index: int) -> None:
        """Opens a page, whose pixels are not decoded yet. Raises InputError if it is not like the first."""
        with self._decoding(index):
            turn_to(image, index)
            self._check_size(index, upright_size(image))
        if is_deep(image) != self._deep:
            raise InputError(f"{self.path}: frame {index} has pixels of another depth than frame 0")

    def _range(self, image: Image, stated: dict[str, str]) -> GrayRange:
        displayed = _displayed(stated)
        with self._decoding(0):
            turn_to(image, 0)
            first = gray_values(image)
        # otherwise it belongs to other values than these
        if displayed is not None and ((first > displayed.black) & (first < displayed.white)).any():
            return displayed
        return range_of(self._values(image))

    def _values(self, image: Image) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for index in range(self.frame_count or 0):
            self._turn_to(image, index)
            with self._decoding(index):
                values = gray_values(image)
            yield f"{self.path}: frame {index}", values


def _stated(image: Image) -> dict[str, str]:
    """What ImageJ or OME wrote into the description of the first page; the sizes of OME as ImageJ would name them."""
    text = tags_of(image).get(_DESCRIPTION)
    if not isinstance(text, str):
        return {}
    if text.startswith("ImageJ="):
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    # in a file of several images, of the first
    found = {_OME_AXES[axis]: size for axis, size in reversed(_OME_AXIS.findall(text))} if "<OME" in text else {}
    samples = tags_of(image).get(_SAMPLES_PER_PIXEL, 1)
    # the three values of a pixel are channels to OME
    return found if found.get("channels") != str(samples) else found | {"channels": "1"}


def _check_axes(path: Path, stated: dict[str, str], pages: int) -> None:
    """Raises InputError if the pages are not one sequence of images."""
    channels, slices, times, images = (_count(stated, name) for name in ("channels", "slices", "frames", "images"))
    if channels > 1:
        raise InputError(f"{path}: found {channels} channels, expected one, or RGB; save the channel to be segmented")
    if slices > 1 and times > 1:
        what = f"{slices} slices at each of {times} times"
        raise InputError(f"{path}: found {what}, expected one sequence of images; save one slice or a projection")
    if images > pages:
        raise InputError(f"{path}: found {pages} of {images} images, as ImageJ does above 4 GB; save them one by one")


def _count(stated: dict[str, str], name: str) -> int:
    number = stated.get(name, "")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 1


def _displayed(stated: dict[str, str]) -> GrayRange | None:
    """The range of gray values that ImageJ showed from black to white."""
    try:
        black, white = float(stated["min"]), float(stated["max"])
    except (KeyError, ValueError):
        return None
    return GrayRange(black, white) if math.isfinite(white - black) and black < white else None
