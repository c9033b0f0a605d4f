"""Frames of a video file, decoded by PyAV: exact, in presentation order, with their own time stamps."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stm_fast.errors import InputError
from stm_fast.video import containers
from stm_fast.video.display_matrix import Orientation, orientation_of
from stm_fast.video.frames import Frame, NumberedFrames
from stm_fast.video.known_frames import KnownFrames
from stm_fast.video.packet_count import PacketCount, VideoPacket
from stm_fast.video.packet_index import PacketIndex, read_index
from stm_fast.video.rewind import FrameRecord, HeldFrames, fitting, size_of
from stm_fast.video.sound import Sound
from stm_fast.video.stream_input import VideoInput, frame_rate_of, note_choice, open_stream

logger = logging.getLogger(__name__)

# frames that a decoder may show before the frame at which a file was positioned
_MOST_EARLIER = 300
# of each frame, until a video is read backward; most need two or three
_MANY_DECODINGS = 10


class VideoReader(NumberedFrames):
    """What readers of video streams share: decoding."""

    _orientation: Orientation

    def _timed(self, frames: Iterator[VideoFrame], origin: float | None = None) -> Iterator[tuple[float, VideoFrame]]:
        """When decoded frames are shown in seconds since the first, whose time is `origin`: by default, the next."""
        time = -math.inf
        for stored in frames:
            stamp = _seconds(stored)
            if origin is None:
                origin, time = stamp or 0.0, 0.0
            elif stamp is not None and stamp - origin > time:
                time = stamp - origin
            else:
                # some containers (AVI) have no usable time stamps: continue at the frame rate
                time += float(1 / self.frame_rate)
            yield time, stored

    def _convert(self, index: int, time: float, stored: VideoFrame) -> Frame:
        with self._decoding(index):
            image = cast(npt.NDArray[np.uint8], stored.to_ndarray(format="rgb24"))  # [H, W, 3]
        return Frame(index, time, self.name_of(index), self._orientation.apply(image))


class VideoFile(VideoReader):
    """Frames of the default video stream of a file; constant and variable frame rate, rotation applied.

    The length that the file states is compared with its size, its frames are counted without decoding them, and the
    first frame is decoded, so that incomplete files are refused before any work. Pixels are used as stored:
    a non-square pixel aspect ratio is not corrected. Raises InputError if the file is not a video, has no video stream,
    is truncated, has frames of more than MAX_PIXELS, or has no frame at all.
    """

    # whether all of it is read to know the number of frames, where only its packets tell
    _counts_packets = True

    def __init__(self, path: Path) -> None:
        self.path = self.label = path
        self.name = path.stem
        self._inspect()

    def _inspect(self) -> None:
        """What is known before the frames are read. Raises InputError as the class says."""
        self.frame_count = None
        with self._bytes() as file, self._open() as (container, stream):
            _check_complete(self.label, file, container, stream)
            note_choice(self.label, container, stream)
            self.frame_rate = frame_rate_of(stream)
            count = PacketCount(file, container, stream)
            packets = count.watch(container.demux(stream))
            first = next(self._decoded(packets))
            self._note_first(first)
            self.height, self.width = self._convert(0, 0.0, first).image.shape[:2]
            # a damaged frame is reported by name when it is reached
            if count.has_index or self._counts_packets:
                with suppress(av.FFmpegError):
                    self.frame_count = count.finish(packets)

    def forward(self, start: int = 0) -> Iterator[Frame]:
        """As `FrameReader.forward`; frames that a decoder silently drops are counted until one pass has noticed that.

        Only damaged files have such frames.
        """
        for index, (time, stored) in enumerate(self._shown(start), start):
            yield self._convert(index, time, stored)

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        known, held = self._last_held(before)
        while held:
            first = held.first
            while held:
                # no frame stays in a variable: FFmpeg frees the memory of all decoded frames together
                yield self._convert(held.last, known.times[held.last], held.pop())
            if first > 0:
                held = self._held_before(first, known)
                if not held:
                    raise InputError(f"{self.label}: damaged before frame {first}, or changed while it was read")

    def sound(self, start: float = 0.0) -> Sound | None:
        with self._open() as (container, _):
            if not container.streams.audio:
                return None
        return Sound(self.label, self._open(), Fraction(self._origin) + Fraction(start))

    def _note_first(self, first: VideoFrame) -> None:
        self._origin, self._first_stamp = _seconds(first) or 0.0, first.pts
        self._frame_bytes = size_of(first)
        with self._decoding(0):
            # read once: PyAV's side data and its frame form a reference cycle
            self._orientation = orientation_of(first)

    def _shown(self, start: int = 0, before: int | None = None) -> Iterator[tuple[float, VideoFrame]]:
        """The frames from one on, before another; as `_decoded`. Raises InputError at one of another size."""
        count = start
        if self.frame_count is not None and start >= self.frame_count:
            return
        for time, stored in islice(self._timed_from(start), None if before is None else before - start):
            self._check_size(count, self._orientation.upright_size(stored))
            yield time, stored
            count += 1
        if before is None and self.frame_count not in (None, count):
            # decoders silently drop frames of a damaged file
            self._index = None
            logger.warning("%s: damaged: %d of %d frames could be decoded", self.label, count, self.frame_count)

    def _timed_from(self, start: int) -> Iterator[tuple[float, VideoFrame]]:
        """The frames from one on, as `_timed`; decoded from a key frame if the index leads to the first of them."""
        index = self._index if start > 0 else None
        if index is not None:
            for key in takewhile(bool, index.starts(start + 1, 1)):
                found = False
                for timed in self._timed(self._from_key(key, start, index), self._origin):
                    found = True
                    yield timed
                if found:
                    return
        with self._open() as (container, stream):
            yield from islice(self._timed(self._decoded(container.demux(stream))), start, None)

    def _from_key(self, key: int, start: int, index: PacketIndex) -> Iterator[VideoFrame]:
        """The frames from `start` on, decoded from a key frame before it; none if it is not found that way."""
        with self._positioned(key, index) as frames:
            located = self._located(islice(frames, start - key + _MOST_EARLIER), key, index)
            at, frame = next(dropwhile(lambda found: found[0] < start, located), (None, None))
            if frame is not None and at == start:
                yield frame
                yield from self._checked(frames, start + 1)

    def _decoded(self, packets: Iterator[VideoPacket]) -> Iterator[VideoFrame]:
        """The frames from the first on. Raises InputError at a damaged frame, or if there is none at all."""
        return self._checked(_decode(packets), 0)

    def _checked(self, frames: Iterator[VideoFrame], index: int) -> Iterator[VideoFrame]:
        """The frames from one on, while they are decoded; errors as `_decoded`."""
        while True:
            with self._decoding(index):
                frame = next(frames, None)
            if frame is None:
                break
            if frame.is_corrupt:
                raise InputError(f"{self.label}: frame {index} is corrupt")
            yield frame
            index += 1
        if index == 0:
            raise InputError(f"{self.label}: the video stream contains no frames")

    @cached_property
    def _index(self) -> PacketIndex | None:
        """Which frame is which; None if only decoding can tell."""
        if self.frame_count is None:
            return None
        # damaged: the frames before it are decoded from the first on
        with suppress(av.FFmpegError), self._packets() as (stream, packets):
            index = read_index(stream, packets, self._frame_bytes)
            if index is not None and (len(index), index.stamp(0)) == (self.frame_count, self._first_stamp):
                return index
        return None

    def _last_held(self, before: int | None) -> tuple[KnownFrames, HeldFrames]:
        """What is known of the frames before one, or all, and the last of them."""
        index = self._index
        if index is not None:
            stop = min(len(index) if before is None else before, len(index))
            held = self._held_before(stop, index)
            if held or stop <= 0:
                self._warn_of_decodings(index)
                return index, held
            # decoding does not give the frames of the index
            self._index = None
        record, held = FrameRecord(), HeldFrames()
        for at, (time, stored) in enumerate(self._shown(0, before)):
            record.add(time, stored)
            held.add(at, stored)
        self._warn_of_decodings(record)
        return record, held

    def _warn_of_decodings(self, known: KnownFrames) -> None:
        times = known.decodings(fitting(known.frame_bytes))
        if times > _MANY_DECODINGS:
            logger.warning("%s: few key frames: to read it backward, frames are decoded %.0f times", self.label, times)

    def _held_before(self, stop: int, known: KnownFrames) -> HeldFrames:
        """The last frames before `stop`, from the best place to start at which decoding finds those that are known.

        No frames if there is no such place.
        """
        for start in known.starts(stop, fitting(known.frame_bytes)):
            held = HeldFrames()
            for index, stored in takewhile(lambda found: found[0] < stop, self._decoded_from(start, stop, known)):
                held.add(index, stored)
                if index == stop - 1:
                    return held
        return HeldFrames()

    def _decoded_from(self, start: int, stop: int, known: KnownFrames) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from key frame `start` or one nearby, with their indices, to `stop` or further; fewer if not found."""
        if start == 0:
            with self._open() as (container, stream):
                yield from known.located(self._decoded(container.demux(stream)), 0)
        else:
            with self._positioned(start, known) as frames:
                yield from self._located(islice(frames, stop - start + _MOST_EARLIER), start, known)

    def _located(
        self, frames: Iterator[VideoFrame], start: int, known: KnownFrames
    ) -> Iterator[tuple[int, VideoFrame]]:
        """As `KnownFrames.located`. Raises InputError at a damaged frame; ends at one that needs others before."""
        at = None
        try:
            for at, frame in known.located(frames, start):
                yield at, frame
        except Exception:  # of any type, for hostile data
            if at is not None and known.sure:
                with self._decoding(at + 1):
                    raise

    @contextmanager
    def _positioned(self, key: int, known: KnownFrames) -> Iterator[Iterator[VideoFrame]]:
        """The frames that are decoded from a key frame, or one nearby; perhaps none."""
        with self._open() as (container, stream):
            try:
                container.seek(known.stamp(key), stream=stream)
            except av.FFmpegError:  # not every file can be positioned
                yield iter(())
            else:
                yield _decode(container.demux(stream))

    def _open(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_stream(VideoInput(self.label, f"file:{self.path}", ("file",)))

    @contextmanager
    def _packets(self) -> Iterator[tuple[VideoStream, Iterator[VideoPacket]]]:
        """All packets of the video, of which only the sizes, the time stamps and the kinds are used."""
        with self._open() as (container, stream):
            yield stream, container.demux(stream)

    def _bytes(self) -> AbstractContextManager[BinaryIO]:
        """The file itself."""
        assert self.path is not None
        return self.path.open("rb")


def _decode(packets: Iterator[VideoPacket]) -> Iterator[VideoFrame]:
    last = None
    for packet in packets:
        # PyAV appends an empty packet to mark the end; some containers (AVI) repeat a frame with an empty packet
        if packet.size:
            yield from packet.decode()
        else:
            last = packet
    if last is not None:
        yield from last.decode()


def _seconds(frame: VideoFrame) -> float | None:
    """When a frame is shown; None if the file does not say."""
    time = frame.time if frame.pts is not None and frame.time_base else None
    return time if time is not None and math.isfinite(time) else None


def _check_complete(label: object, file: BinaryIO, container: InputContainer, stream: VideoStream) -> None:
    """Refuses a file that ends before the last packet of its index (MP4, MOV, AVI) or its stated end (Matroska)."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if "matroska" in container.format.name:
        end = containers.stated_end(file) or end
    size = containers.size_of(file)
    if end > size:
        raise InputError(f"{label}: truncated: it should have {end} bytes, but has {size}")
