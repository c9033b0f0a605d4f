"""Sources of training clips. A frame is a mask and an image that is decoded on demand."""

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
        name: the file of the image, or the seed and time of a synthetic one.
        ids: uint8 [H, W], object ids, 0 is background.
        read: decodes the image, downscaled by its argument s, which is 1, 2, 4 or 8: RGB uint8
            [ceil(H / s), ceil(W / s), 3]. Raises InputError.
    """

    name: str
    ids: Bytes
    read: Callable[[int], Bytes]


class ClipSource(Protocol):
    """Where clips come from: videos, or still images that random motion turns into clips."""

    @property
    def moving(self) -> bool:
        """True for videos, False for still images."""

    def __len__(self) -> int:
        """Number of still images or sequences."""

    def check_length(self, frames: int) -> None:
        """Raises InputError if a clip cannot have this many frames."""

    def length(self, index: int) -> int:
        """Frames of sequence `index`; 1 for a still image."""

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Draws the times of a clip of sequence `index`, in order; those of a still image are all 0.

        Args:
            frames: frames of the clip, T.
            max_skip: the most frames skipped between two frames of a video; with 0, frames are consecutive.

        Raises:
            InputError: the sequence is too short.
        """

    def frame(self, index: int, time: int) -> Frame:
        """One frame. Raises InputError for files that are missing, damaged, or of different sizes."""


class SingleFrameSource:
    """Base class of sources of still images, each of which is repeated for clips of any length."""

    moving = False

    def check_length(self, frames: int) -> None:
        """Never raises."""

    def length(self, index: int) -> int:
        """1."""
        return 1

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Zeros; draws no random numbers."""
        return [0] * frames


def draw_frames(
    source: ClipSource, index: int, frames: int, max_skip: int, generator: np.random.Generator
) -> list[Frame]:
    """A clip of T frames at times that the source draws; a still image is the same frame T times. Raises InputError."""
    times = source.times(index, frames, max_skip, generator)
    opened = {time: source.frame(index, time) for time in dict.fromkeys(times)}
    return [opened[time] for time in times]


def file_frame(image: Path, ids: Bytes, mask: Path) -> Frame:
    """A frame of an image file and the ids of its mask; whether sizes agree is checked when the image is read."""
    return Frame(str(image), ids, partial(read_image, image, ids.shape, mask))


def read_image(file: Path, size: tuple[int, int], mask: Path, shrink: int) -> Bytes:
    """RGB uint8 [ceil(H / shrink), ceil(W / shrink), 3]; EXIF orientation is applied.

    A JPEG is decoded at the smaller size, which takes a fraction of the time.

    Args:
        size: H, W of the mask.
        mask: the file of the mask, for the message if sizes differ.
        shrink: 1, 2, 4 or 8.

    Raises:
        InputError: no such file, a damaged one, more than 8 bits per channel, or a size other than that of its mask.
    """
    with open_image(file) as image:
        width, height = upright_size(image)
        if (height, width) != size:
            raise InputError(f"{mask}: mask of {size[1]}x{size[0]}, expected {width}x{height} like {file.name}")
        turn = orientation(image)
        stored = image.size
        # for a smaller image, Pillow would choose another scale
        if min(stored) >= shrink:
            image.draft("RGB", (stored[0] // shrink, stored[1] // shrink))
        decoded = to_rgb(image)
        return upright(decoded.reduce(shrink) if decoded.size == stored else decoded, turn)
