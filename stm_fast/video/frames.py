"""The interface of frame readers: one frame at a time, never the whole video."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, refusing

if TYPE_CHECKING:
    from stm_fast.video.sound import Sound

# of a frame number
_MAX_DIGITS = 18


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video, upright (rotation applied).

    Attributes:
        index: position in presentation order, from 0.
        time: seconds since the first frame.
        name: stem of the files written for this frame: "00000" for a video, the image's stem for a folder.
        image: uint8 RGB, [H, W, 3], contiguous.
    """

    index: int
    time: float
    name: str
    image: npt.NDArray[np.uint8]


class FrameReader(ABC):
    """Frames of one video or folder, in order. Each `iter()` starts from frame 0.

    An iteration owns the file it reads and closes it when it ends or is dropped: between iterations nothing is open.

    Attributes:
        path: the local file or folder; None for a URL or a live source.
        name: name of the video: the file's stem or the folder's name.
        width, height: size of every frame in pixels, after rotation.
        frame_count: number of frames, or None if it is known only at the end.
        frame_rate: frames per second; the average if the rate varies.
        left_out: images that are not frames because they are masks.
        live: whether the frames can be read only once, as they come.
    """

    path: Path | None
    name: str
    width: int
    height: int
    frame_count: int | None
    frame_rate: Fraction
    left_out: Sequence[Path] = ()
    live: bool = False

    def __iter__(self) -> Iterator[Frame]:
        """Frames from the first. Raises InputError, which names the frame, if one cannot be decoded."""
        return self.forward()

    @abstractmethod
    def forward(self, start: int = 0) -> Iterator[Frame]:
        """The frames from one on, as `iter()` gives them; none if the video ends before it. Memory is bounded.

        Frames of files are decoded from the key frame before, if their time stamps tell which frame is which, otherwise
        from the first one. A frame before that cannot be decoded then does not matter. Raises InputError as `iter()`.
        """

    @abstractmethod
    def backward(self, before: int | None = None) -> Iterator[Frame]:
        """The frames before one, or all, from the last to frame 0; otherwise as `iter()` gives them.

        Memory is bounded. Raises InputError as `iter()` does, but possibly before the first frame is given.
        """

    @abstractmethod
    def index_of(self, name: str) -> int | None:
        """The index of the frame with this name, or None."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name of a frame, as in `Frame`. An index past the end is a programming error."""

    def file_name(self, index: int) -> str:
        """The name of the image of a frame, or that which it would have as a JPEG."""
        return f"{self.name_of(index)}.jpg"

    def sound(self, start: float = 0.0) -> "Sound | None":
        """The sound of the video, from `start` seconds after the first frame on; None if there is none.

        The caller closes it.
        """
        return None


class NumberedFrames(FrameReader):
    """Frames of one file or stream, which have no names of their own: "00000", "00001" and so on.

    Attributes:
        label: what is read, for messages.
    """

    label: object

    def index_of(self, name: str) -> int | None:
        if not (name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS):
            return None
        return int(name) if self.frame_count is None or int(name) < self.frame_count else None

    def name_of(self, index: int) -> str:
        return f"{index:05d}"

    def _decoding(self, index: int) -> AbstractContextManager[None]:
        """Turns exceptions inside the block into an InputError that names the frame."""
        return refusing(f"{self.label}: frame {index} cannot be decoded")

    def _check_size(self, index: int, size: tuple[int, int]) -> None:
        """Raises InputError if a frame has another size W, H than the first."""
        if size != (self.width, self.height):
            expected = f"{self.width}x{self.height} like frame 0"
            raise InputError(f"{self.label}: frame {index} is {size[0]}x{size[1]}, expected {expected}")
