"""Sources of training clips: frames, each a mask and an image that is decoded on demand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError
from stm_fast.video.image_file import open_image, orientation, to_rgb, upright, upright_size

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Frame:
    """One image and its mask.

    Attributes:
        name: the file of the image, or the seed it was drawn from.
        ids: uint8 [H, W], object ids, 0 is background.
        read: decodes the image, RGB uint8 [H / s, W / s, 3], rounded up: a pixel for a block of `s` pixels a side,
            where the argument `s` is 1, 2, 4 or 8. Raises InputError.
    """

    name: str
    ids: Bytes
    read: Callable[[int], Bytes]


class ClipSource(Protocol):
    """Where clips come from: videos, or still images that are to be set in motion."""

    @property
    def moving(self) -> bool:
        """Whether the frames of a clip differ: a video."""

    def __len__(self) -> int:
        """How many still images or sequences there are."""

    def check_length(self, frames: int) -> None:
        """Raises InputError where a clip cannot have this many frames."""

    def length(self, index: int) -> int:
        """How many frames sequence `index` has; a still image has one."""

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Draws the times of a clip of sequence `index`, in order; those of a still image are all 0.

        Args:
            frames: number of frames T.
            max_skip: most frames skipped between two frames of a video; 0 takes neighbors.

        Raises InputError for a sequence that is too short.
        """

    def frame(self, index: int, time: int) -> Frame:
        """One frame. Raises InputError for files that are missing, broken or do not fit together."""


class StillSource:
    """What sources of still images share: each is one frame, of any number of clip frames."""

    moving = False

    def check_length(self, frames: int) -> None:
        """Does nothing: a still image gives clips of any length."""

    def length(self, index: int) -> int:
        """One frame."""
        return 1

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Always 0; nothing is drawn."""
        return [0] * frames


def draw_frames(
    source: ClipSource, index: int, frames: int, max_skip: int, generator: np.random.Generator
) -> list[Frame]:
    """A clip at times that the source draws; of a still image, one frame T times over. Raises InputError."""
    times = source.times(index, frames, max_skip, generator)
    opened_once = {time: source.frame(index, time) for time in dict.fromkeys(times)}
    return [opened_once[time] for time in times]


def file_frame(image: Path, ids: Bytes, mask: Path) -> Frame:
    """A frame of two files; that their sizes agree is checked when the image is read."""
    return Frame(str(image), ids, partial(read_image, image, ids.shape, mask))


def read_image(file: Path, size: tuple[int, int], mask: Path, shrink: int) -> Bytes:
    """RGB uint8 [H / shrink, W / shrink, 3], rounded up; EXIF orientation is applied.

    A JPEG is decoded at the smaller size, which costs a fraction of the time.

    Args:
        size: H, W of the mask.
        mask: the file of the mask, to name where the sizes differ.
        shrink: 1, 2, 4 or 8.

    Raises InputError: no such file, a broken one, more than 8 bits a channel, a size other than that of its mask.
    """
    with open_image(file) as image:
        width, height = upright_size(image)
        if (height, width) != size:
            raise InputError(f"{mask}: mask of {size[1]}x{size[0]}, expected {width}x{height} as {file.name}")
        turn = orientation(image)
        stored = image.size
        # of a smaller image Pillow would choose another scale
        if min(stored) >= shrink:
            image.draft("RGB", (stored[0] // shrink, stored[1] // shrink))
        decoded = to_rgb(image)
        return upright(decoded.reduce(shrink) if decoded.size == stored else decoded, turn)
