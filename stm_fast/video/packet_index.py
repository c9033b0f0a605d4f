"""Which frame is which, from the time stamps of all packets of a video stream, none of which is decoded for that."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from stm_fast.video.known_frames import KnownFrames
from stm_fast.video.packet_count import VideoPacket, shown_of

Stamps = npt.NDArray[np.int64]


class PacketIndex(KnownFrames):
    """The frames of a stream in presentation order, in about 16 bytes each.

    They are recognized by their stamps: from a key frame on, decoding has to give one after the other.
    """

    sure = True

    def __init__(self, stamps: Stamps, keys: Stamps, time_base: Fraction, frame_bytes: int) -> None:
        """The stamps of all frames and of the key frames, in the order of the packets, in units of `time_base`."""
        self.frame_bytes = frame_bytes
        ordered = np.sort(stamps)
        # as PyAV calculates the time of a frame
        seconds = ordered.astype(np.float64) * time_base.numerator / time_base.denominator
        self.times = array("d", (seconds - seconds[:1]).tobytes())
        self._stamps = array("q", ordered.tobytes())
        self._keys = array("q", np.searchsorted(ordered, keys).astype(np.int64).tobytes())

    def located(self, frames: Iterable[VideoFrame], start: int) -> Iterator[tuple[int, VideoFrame]]:
        """From the first key frame on, unless from the start, and up to the first frame that does not follow."""
        expected = 0 if start == 0 else None
        for frame in frames:
            index = self._index_of(frame)
            if expected is None and _is_entry(frame):
                expected = index
            # otherwise it refers to frames before the start
            if expected is not None:
                if index != expected or frame.is_corrupt:
                    return
                yield index, frame
                expected += 1

    def _index_of(self, frame: VideoFrame) -> int | None:
        at = len(self) if frame.pts is None else bisect_left(self._stamps, frame.pts)
        return at if at < len(self) and self._stamps[at] == frame.pts else None


def read_index(stream: VideoStream, packets: Iterable[VideoPacket], frame_bytes: int) -> PacketIndex | None:
    """The index of a stream from its packets; None if its stamps do not tell which frame is which.

    Args:
        stream: with the packets.
        packets: all of them, in their order.
        frame_bytes: of a decoded frame.
    """
    shown = shown_of(stream)
    stamps, is_key = array("q"), array("b")
    for packet in packets:
        number = shown(packet) if packet.size and not packet.is_discard else 0
        if number == 1 and packet.pts is not None and not packet.is_corrupt:
            stamps.append(packet.pts)
            is_key.append(packet.is_keyframe)
        elif number != 0:
            return None
    of_frames, at = np.array(stamps, np.int64), np.flatnonzero(np.array(is_key))
    if not len(stamps) or stream.time_base is None or not _in_order(of_frames, at):
        return None
    index = PacketIndex(of_frames, of_frames[at], stream.time_base, frame_bytes)
    return index if (np.diff(np.array(index.times)) > 0).all() else None


def _in_order(stamps: Stamps, keys: npt.NDArray[np.int64]) -> bool:
    """Whether frames are shown group by group.

    What precedes a key frame is shown before it; what follows one is shown after the key frame before.
    """
    first, latest = np.minimum.accumulate(stamps[::-1])[::-1], np.maximum.accumulate(stamps)
    later = keys[keys > 0]
    before, after = latest[later - 1] < stamps[later], first[keys[1:]] > stamps[keys[:-1]]
    return bool(before.all() and after.all())


def _is_entry(frame: VideoFrame) -> bool:
    """Whether what is shown after the frame does not refer to anything before it.

    Containers mark other frames as key frames, too. Where pictures are refreshed gradually, decoders mark where that
    begins; its type shows that not all of its pixels are right.
    """
    return frame.key_frame and frame.pict_type == PictureType.I
