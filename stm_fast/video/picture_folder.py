"""Frames of a folder of pictures, in the natural order of their names."""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from stm_fast.errors import InputError, reading
from stm_fast.listing import list_pictures
from stm_fast.video.frames import Frame, FrameReader
from stm_fast.video.pillow import opened, orientation, seen_size, to_rgb, upright

# a folder states no rate: the one of DAVIS
FRAME_RATE = Fraction(24)


class PictureFolder(FrameReader):
    """jpg, jpeg, png and webp files of a folder; "frame2" comes before "frame10". EXIF orientation is applied.

    The header of every picture is read first (not its pixels), so that pictures of different sizes are refused before
    work starts.

    Args:
        folder: of the pictures.
        masks: no frames, where they lie among the pictures.

    Raises InputError: no picture, a broken one, two of the same stem, different sizes, more than 8 bits a channel, a
    mask that could be a frame by its name.
    """

    def __init__(self, folder: Path, masks: Iterable[Path] = ()) -> None:
        self.path = folder
        self.name = folder.resolve().name
        self.frame_rate = FRAME_RATE
        self._files, self.left_out = _list_pictures(folder, masks)
        self.frame_count = len(self._files)
        self.width, self.height = _read_size(self._files[0])
        for file in self._files[1:]:
            self._check_size(file, *_read_size(file))

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self._files):
            with opened(file) as picture:
                # it may have been replaced since
                self._check_size(file, *seen_size(picture))
                image = _decode(picture)
            yield Frame(index, float(index / self.frame_rate), file.stem, image)

    def index_of(self, name: str) -> int | None:
        return next((index for index, file in enumerate(self._files) if file.stem == name), None)

    def name_of(self, index: int) -> str:
        return self._files[index].stem

    def _check_size(self, file: Path, width: int, height: int) -> None:
        if (width, height) != (self.width, self.height):
            expected = f"{self.width}x{self.height} as {self._files[0].name}"
            raise InputError(f"{file}: picture of {width}x{height}, expected {expected}")


def _list_pictures(folder: Path, masks: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The frames of a folder, and the masks among them."""
    found = list_pictures(folder)
    with reading(folder):
        known = {_identity(file) for file in masks if file.exists()}
        files = [file for file in found if _identity(file) not in known]
    left_out = sorted(set(found) - set(files))
    if not files:
        what = "no pictures beside the masks" if left_out else "no pictures in this folder"
        raise InputError(f"{folder}: {what}, expected jpg, png or webp files")
    _check_names(files, left_out)
    return files, left_out


def _check_names(frames: list[Path], masks: list[Path]) -> None:
    named: dict[str, Path] = {}
    for file in frames:
        twin = named.setdefault(file.stem, file)
        if twin is not file:
            raise InputError(f"{file}: same name as {twin.name}, so the masks of both would be one file")
    numberings = {_numbering(name) for name in named}
    for mask in masks:
        if mask.stem not in named and _numbering(mask.stem) in numberings:
            raise InputError(f"{mask}: given as mask, and named as a frame is; expected a folder of frames alone")


def _identity(file: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    facts = file.stat()
    return facts.st_dev, facts.st_ino


def _numbering(name: str) -> str:
    """The same for names that differ in their numbers alone."""
    return re.sub(r"\d+", "0", name.lower())


def _read_size(file: Path) -> tuple[int, int]:
    """Width and height as seen, from the header alone."""
    with opened(file) as picture:
        return seen_size(picture)


def read_frame(file: Path) -> npt.NDArray[np.uint8]:
    """The picture uint8 [H, W, 3] RGB, upright. Raises InputError where it cannot be decoded."""
    with opened(file) as picture:
        return _decode(picture)


def _decode(picture: Image) -> npt.NDArray[np.uint8]:
    # asked before the pixels are decoded, as the size is: what follows them in a PNG changes neither
    turn = orientation(picture)
    return upright(to_rgb(picture), turn)
