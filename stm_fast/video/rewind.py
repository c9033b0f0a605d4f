"""What reading a video backwards remembers of its frames, and the decoded frames that it holds."""

import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from stm_fast.video.known_frames import KnownFrames

# bytes of decoded frames that are held at once, unless the fewest frames need more
HELD_BYTES = 128 * 2**20
FEWEST_FRAMES = 4
# stands for a frame without a time stamp
_NO_STAMP = -(2**63)


class FrameRecord(KnownFrames):
    """What one pass over the frames of a video saw of each, in about 24 bytes: enough to recognize it later."""

    sure = False  # a key frame of the file may need others before it

    def __init__(self) -> None:
        self.times, self._stamps, self._keys = array("d"), array("q"), array("q")
        self._checksums = array("I")
        self.frame_bytes = 1

    def add(self, time: float, frame: VideoFrame) -> None:
        """Adds the next frame."""
        if frame.key_frame and frame.pts is not None:
            self._keys.append(len(self.times))
        self.times.append(time)
        self._stamps.append(_stamp(frame))
        self._checksums.append(_checksum(frame))
        self.frame_bytes = max(self.frame_bytes, size_of(frame))

    def located(self, frames: Iterable[VideoFrame], start: int) -> Iterator[tuple[int, VideoFrame]]:
        """Those whose stamp and pixels are on record, unlike ones that refer to frames before the start."""
        if start == 0:  # not every frame has a stamp
            yield from enumerate(frames)
            return
        following = -1
        for frame in frames:
            index = self._index_of(_stamp(frame), following)
            if index is not None and self._checksums[index] == _checksum(frame):
                yield index, frame
            following = -1 if index is None else index + 1

    def _index_of(self, stamp: int, following: int) -> int | None:
        if stamp == _NO_STAMP:
            return None
        # of several frames with this stamp, the one that follows the frame before
        if 0 <= following < len(self._stamps) and self._stamps[following] == stamp:
            return following
        order, stamps = self._by_stamp
        at = int(np.searchsorted(stamps, stamp))
        return int(order[at]) if at < len(stamps) and stamps[at] == stamp else None

    @cached_property
    def _by_stamp(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Indices in the order of the stamps, and the stamps in order: those of AVI files may go back."""
        stamps = np.array(self._stamps, np.int64)
        order = np.argsort(stamps, kind="stable")
        return order, stamps[order]


def fitting(frame_bytes: int) -> int:
    """How many frames of this size are held at once."""
    return max(FEWEST_FRAMES, HELD_BYTES // frame_bytes)


class HeldFrames:
    """The last decoded frames of a run of consecutive ones, as many as HELD_BYTES allows."""

    def __init__(self) -> None:
        self._frames: deque[tuple[int, VideoFrame]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def first(self) -> int:
        """The index of the first frame that is held."""
        return self._frames[0][0]

    @property
    def last(self) -> int:
        """The index of the last frame that is held."""
        return self._frames[-1][0]

    def add(self, index: int, frame: VideoFrame) -> None:
        """Adds a frame; those before it are dropped if they do not directly precede it."""
        if self._frames and self.last != index - 1:
            self._frames.clear()
            self._bytes = 0
        self._frames.append((index, frame))
        self._bytes += size_of(frame)
        while self._bytes > HELD_BYTES and len(self._frames) > FEWEST_FRAMES:
            self._bytes -= size_of(self._frames.popleft()[1])

    def pop(self) -> VideoFrame:
        """Removes the last frame."""
        _, frame = self._frames.pop()
        self._bytes -= size_of(frame)
        return frame


def size_of(frame: VideoFrame) -> int:
    """Bytes of a decoded frame."""
    return sum(plane.buffer_size for plane in frame.planes)


def _stamp(frame: VideoFrame) -> int:
    return _NO_STAMP if frame.pts is None else frame.pts


def _checksum(frame: VideoFrame) -> int:
    """Of the size and of all pixels as decoded."""
    checksum = zlib.crc32(f"{frame.width} {frame.height} {frame.format.name}".encode())
    for number, plane in enumerate(frame.planes):
        content = np.frombuffer(memoryview(cast(Any, plane)), np.uint8)
        rows = content[: plane.height * plane.line_size].reshape(-1, plane.line_size)
        # what follows the pixels of a row is not defined
        checksum = zlib.crc32(np.ascontiguousarray(rows[:, : _row_bytes(frame, number)]).data, checksum)
    return checksum


def _row_bytes(frame: VideoFrame, number: int) -> int:
    """Bytes of the pixels in a row of a plane. A plane without components is a palette."""
    plane, parts = frame.planes[number], [part for part in frame.format.components if part.plane == number]
    if len(frame.planes) == 1:
        return plane.width * frame.format.padded_bits_per_pixel // 8
    return plane.width * sum((part.bits + 7) // 8 for part in parts) if parts else plane.line_size
