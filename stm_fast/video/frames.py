"""What a reader of frames gives: one frame at a time, never the whole video."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video, as it should be seen (rotation applied).

    Attributes:
        index: position in presentation order, from 0.
        time: seconds since the first frame.
        name: name of what is written for this frame: "00000" for a video, the file's stem for a folder of pictures.
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
        path: the file or folder.
        name: name of the video: the file's stem or the folder's name.
        width, height: size of every frame in pixels, after rotation.
        frame_count: number of frames, None where that is known at the end only.
        frame_rate: frames per second; the average where the rate varies.
        left_out: pictures that are no frames, because they are masks.
    """

    path: Path
    name: str
    width: int
    height: int
    frame_count: int | None
    frame_rate: Fraction
    left_out: Sequence[Path] = ()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames from the first. Raises InputError at a frame that cannot be decoded, and names it."""

    @abstractmethod
    def index_of(self, name: str) -> int | None:
        """The index of the frame of this name; None where there is none."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name of a frame, which `Frame` has too. An index beyond the end is a programmer's mistake."""

    def close(self) -> None:
        """Let go of what outlives an iteration."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
