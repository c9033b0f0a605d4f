"""How the frames of a video file are turned upright: its display matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame


@dataclass(frozen=True)
class Orientation:
    """Quarter turns and reflections, as a transposition followed by flips."""

    transpose: bool
    rows: slice
    columns: slice

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The upright image [H, W, 3], contiguous."""
        turned = image.transpose(1, 0, 2) if self.transpose else image
        return np.ascontiguousarray(turned[self.rows, self.columns])

    def upright_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height of a frame once upright."""
        return (frame.height, frame.width) if self.transpose else (frame.width, frame.height)


def orientation_of(frame: VideoFrame) -> Orientation:
    """The display matrix of a decoded frame, to the nearest quarter turn; upright if it is not close to one."""
    stored: Any = frame.side_data.get("DISPLAYMATRIX")
    a, b, c, d = 1, 0, 0, 1
    if stored is not None:
        # x' = a x + c y, y' = b x + d y, in the layout of the tkhd matrix of ISO/IEC 14496-12
        a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()
    transpose = abs(a) < abs(b) and abs(d) < abs(c)
    if not (transpose or (abs(a) > abs(b) and abs(d) > abs(c))):
        a, d = 1, 1
    across, down = (c, b) if transpose else (a, d)
    return Orientation(transpose, slice(None, None, -1 if down < 0 else 1), slice(None, None, -1 if across < 0 else 1))
