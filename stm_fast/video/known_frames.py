"""What is known of the frames of a video file before they are decoded again, and where decoding can start."""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import ClassVar

from av.video.frame import VideoFrame

# how many key frames further back than needed decoding starts at once, if it had to before
_MOST_BACK = 3


class KnownFrames(ABC):
    """Frames that can be recognized when they are decoded from a key frame instead of the start of the file.

    Attributes:
        times: when each is shown, in seconds.
        frame_bytes: of the largest one, decoded.
        sure: whether all frames that follow a located one can be decoded, unless they are damaged.
    """

    sure: ClassVar[bool]
    times: "array[float]"
    frame_bytes: int
    # in units of the stream
    _stamps: "array[int]"
    # indices of the key frames to which the file may be positioned
    _keys: "array[int]"
    # how many key frames further back decoding started last
    _back = 0

    def __len__(self) -> int:
        return len(self._stamps)

    def stamp(self, index: int) -> int:
        """The time stamp of a frame, in units of its stream; only for one of `starts`."""
        return self._stamps[index]

    def starts(self, stop: int, most: int) -> Iterator[int]:
        """Where to start decoding the frames before `stop`: the best key frame, then earlier ones, at last 0.

        From the best one, the last `most` of these frames are decoded, or fewer, and no others if groups of pictures
        are short. Asking for another start means that the one before did not lead to the frames that are known; the
        next calls begin near the one that did. MPEG-TS files, for example, are always positioned behind a key frame.
        """
        best, back = self._best(stop, most), self._back
        while best - back >= 0 and self._keys[best - back] > 0:
            self._back = min(back, _MOST_BACK)
            yield self._keys[best - back]
            back = 2 * back + 1
        yield 0

    def decodings(self, most: int) -> float:
        """How often a frame is decoded, on average, until all are read backward, if every key frame can be used."""
        total, stop = 0, len(self)
        while stop > 0:
            best = self._best(stop, most)
            start = self._keys[best] if best >= 0 else 0
            total += stop - start
            stop = max(start, stop - most)
        return total / max(1, len(self))

    def _best(self, stop: int, most: int) -> int:
        """The number of the key frame from which to decode as many of the frames before `stop` as are wanted."""
        best = bisect_left(self._keys, stop - most)
        return best - 1 if best == len(self._keys) or self._keys[best] >= stop else best

    @abstractmethod
    def located(self, frames: Iterable[VideoFrame], start: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames decoded from anywhere in the file, with their indices; those that are not known are left out.

        Args:
            frames: decoded in this order.
            start: 0 if they are decoded from the start of the file.
        """
