"""What reading a video backwards remembers of its frames, and the decoded frames that it holds."""

import zlib
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

# bytes of decoded frames that are held at once, unless the fewest frames need more
HELD_BYTES = 128 * 2**20
FEWEST_FRAMES = 4
# stands for a frame without a time stamp
_NO_STAMP = -(2**63)


class FrameRecord:
    """What one pass over the frames of a video saw of each, in about 24 bytes: enough to recognize it later.

    Attributes:
        times: when each is shown, in seconds.
    """

    def __init__(self) -> None:
        self.times = array("d")
        self._stamps = array("q")
        self._checksums = array("I")
        # of the key frames to which a file may be positioned
        self._keys = array("q")
        # how many key frames further back decoding started last
        self._back = 0
        self._largest = 1

    def add(self, time: float, frame: VideoFrame) -> None:
        """Adds the next frame."""
        if frame.key_frame and frame.pts is not None:
            self._keys.append(len(self.times))
        self.times.append(time)
        self._stamps.append(_stamp(frame))
        self._checksums.append(_checksum(frame))
        self._largest = max(self._largest, _size(frame))

    def stamp(self, index: int) -> int:
        """The time stamp of a frame, in units of its stream; only for one of `starts`."""
        return self._stamps[index]

    def starts(self, stop: int) -> Iterator[int]:
        """Where to start decoding the frames before `stop`: the best key frame, then earlier ones, at last 0.

        From the best one as many frames as can be held are decoded, and no others if groups of pictures are short.
        Asking for another start means that the one before did not lead to the frames on record; the next calls begin
        with the one that did. MPEG-TS files, for example, are always positioned behind a key frame.
        """
        best = self._best(stop)
        while best - self._back >= 0 and self._keys[best - self._back] > 0:
            yield self._keys[best - self._back]
            self._back = 2 * self._back + 1
        yield 0

    def decodings(self) -> float:
        """How often a frame is decoded, on average, until all are read backward, if every key frame can be used."""
        count = total = len(self.times)
        stop = count - self._fitting
        while stop > 0:
            best = self._best(stop)
            start = self._keys[best] if best >= 0 else 0
            total += stop - start
            stop = max(start, stop - self._fitting)
        return total / max(1, count)

    @property
    def _fitting(self) -> int:
        """How many frames are held at once."""
        return max(FEWEST_FRAMES, HELD_BYTES // self._largest)

    def _best(self, stop: int) -> int:
        """The number of the key frame from which to decode as many of the frames before `stop` as can be held."""
        best = bisect_left(self._keys, stop - self._fitting)
        return best - 1 if best == len(self._keys) or self._keys[best] >= stop else best

    def located(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames decoded from anywhere in the file, with their indices.

        Those whose stamp and pixels are not on record are left out, such as ones that refer to frames before the start.
        """
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
        self._bytes += _size(frame)
        while self._bytes > HELD_BYTES and len(self._frames) > FEWEST_FRAMES:
            self._bytes -= _size(self._frames.popleft()[1])

    def pop(self) -> VideoFrame:
        """Removes the last frame."""
        _, frame = self._frames.pop()
        self._bytes -= _size(frame)
        return frame


def _stamp(frame: VideoFrame) -> int:
    return _NO_STAMP if frame.pts is None else frame.pts


def _size(frame: VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)


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
