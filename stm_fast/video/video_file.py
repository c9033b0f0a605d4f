"""Frames of a video file, decoded by PyAV: exact, in presentation order, with their own time stamps."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import ThreadType
from av.container import InputContainer
from av.stream import Discard
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stm_fast.errors import InputError, refusing
from stm_fast.video import containers
from stm_fast.video.display_matrix import Orientation, orientation_of
from stm_fast.video.frames import Frame, NumberedFrames
from stm_fast.video.packet_count import PacketCount, VideoPacket
from stm_fast.video.rewind import FrameRecord, HeldFrames
from stm_fast.video.sound import Sound

logger = logging.getLogger(__name__)

# frames per second if the file states none, or none that is plausible
DEFAULT_FRAME_RATE = Fraction(25)
_FRAME_RATES = (Fraction(1, 24 * 3600), Fraction(10_000))
# of a frame: 16K UHD. A file of a few kilobytes can hold a larger frame of a single color
MAX_PIXELS = 15_360 * 8_640
# flags of streams that are not videos: covers, thumbnails, still images, and parts of other streams
_NOT_VIDEO_FLAGS = frozenset({"attached_pic", "timed_thumbnails", "still_image", "dependent"})
# formats that refer to other files or devices, and plain text, which FFmpeg renders like a terminal
_NOT_VIDEO_FORMATS = frozenset(
    {"concat", "dash", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sdp", "tty", "webm_dash_manifest"}
)
# frames that a decoder may show before the frame at which a file was positioned
_MOST_EARLIER = 300
# of each frame, until a video is read backward; most need two or three
_MANY_DECODINGS = 10


class VideoReader(NumberedFrames):
    """What readers of video streams share: decoding."""

    _orientation: Orientation

    def _timed(self, packets: Iterator[VideoPacket]) -> Iterator[tuple[float, VideoFrame]]:
        """The decoded frames, and when they are shown in seconds since the first."""
        time = 0.0
        for index, stored in enumerate(self._decoded(packets)):
            stamp = _seconds(stored)
            if index == 0:
                origin = stamp or 0.0
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

    def _decoded(self, packets: Iterator[VideoPacket]) -> Iterator[VideoFrame]:
        """The decoded frames. Raises InputError at a damaged frame, or if there is none at all."""
        frames = _decode(packets)
        index = 0
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


class VideoFile(VideoReader):
    """Frames of the default video stream of a file; constant and variable frame rate, rotation applied.

    The length that the file states is compared with its size, its frames are counted without decoding them, and the
    first frame is decoded, so that incomplete files are refused before any work. Pixels are used as stored:
    a non-square pixel aspect ratio is not corrected. Raises InputError if the file is not a video, has no video stream,
    is truncated, has frames of more than MAX_PIXELS, or has no frame at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.label = path
        self.name = path.stem
        self.frame_count = None
        with self._open() as (container, stream):
            _check_complete(path, container, stream)
            _note_choice(path, container, stream)
            self.frame_rate = frame_rate_of(stream)
            count = PacketCount(path, container, stream)
            packets = count.watch(container.demux(stream))
            _, first = next(self._timed(packets))
            with self._decoding(0):
                # read once: PyAV's side data and its frame form a reference cycle
                self._orientation = orientation_of(first)
            self.height, self.width = self._convert(0, 0.0, first).image.shape[:2]
            # a damaged frame is reported by name when it is reached
            with suppress(av.FFmpegError):
                self.frame_count = count.finish(packets)

    def __iter__(self) -> Iterator[Frame]:
        for index, (time, stored) in enumerate(self._shown()):
            yield self._convert(index, time, stored)

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        record, held = self._record(before)
        while held:
            first = held.first
            while held:
                # no frame stays in a variable: FFmpeg frees the memory of all decoded frames together
                yield self._convert(held.last, record.times[held.last], held.pop())
            if first > 0:
                held = self._held_before(first, record)

    def sound(self) -> Sound | None:
        with self._open() as (container, stream):
            if not container.streams.audio:
                return None
            origin = _seconds(next(self._decoded(container.demux(stream)))) or 0.0
        return Sound(self.label, self._open(), Fraction(origin))

    def _shown(self, before: int | None = None) -> Iterator[tuple[float, VideoFrame]]:
        """The frames before one, or all. Raises InputError at one that cannot be decoded or has another size."""
        count = 0
        with self._open() as (container, stream):
            for time, stored in islice(self._timed(container.demux(stream)), before):
                self._check_size(count, self._orientation.upright_size(stored))
                yield time, stored
                count += 1
        if before is None and self.frame_count not in (None, count):
            # decoders silently drop frames of a damaged file
            logger.warning("%s: damaged: %d of %d frames could be decoded", self.label, count, self.frame_count)

    def _record(self, before: int | None) -> tuple[FrameRecord, HeldFrames]:
        """What the frames before one are, or all, and the last of them."""
        record, held = FrameRecord(), HeldFrames()
        for index, (time, stored) in enumerate(self._shown(before)):
            record.add(time, stored)
            held.add(index, stored)
        times = record.decodings()
        if times > _MANY_DECODINGS:
            logger.warning("%s: few key frames: to read it backward, frames are decoded %.0f times", self.label, times)
        return record, held

    def _held_before(self, stop: int, record: FrameRecord) -> HeldFrames:
        """The last frames before `stop`, from the best place to start at which decoding finds those on record."""
        for start in record.starts(stop):
            # not every file can be positioned, and a decoder may need frames before a key frame
            with suppress(InputError) if start else nullcontext():
                held = HeldFrames()
                for index, stored in self._decoded_from(start, stop, record):
                    if index >= stop:
                        break
                    held.add(index, stored)
                    if index == stop - 1:
                        return held
        raise InputError(f"{self.label}: changed while it was read")

    def _decoded_from(self, start: int, stop: int, record: FrameRecord) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from key frame `start` or one nearby, with their indices, to `stop` or further; fewer if not found."""
        with self._open() as (container, stream):
            packets = container.demux(stream)
            if start == 0:
                yield from enumerate(self._decoded(packets))
            else:
                with refusing(f"{self.label}: cannot be decoded from frame {start}"):
                    container.seek(record.stamp(start), stream=stream)
                    yield from record.located(islice(_decode(packets), stop - start + _MOST_EARLIER))

    def _open(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_stream(VideoInput(self.label, f"file:{self.path}", ("file",)))


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


class VideoInput(NamedTuple):
    """What FFmpeg opens, and what it may use for that.

    Attributes:
        label: for messages.
        url: with its protocol: without one, a name with a colon would be taken as a protocol.
        protocols: that may be used.
        format: the container format; None to detect it, among those that refer to no other file.
        options: of the format and the protocol.
        seconds: the time limits of opening and of each read; None for no limit.
        problem: what is wrong, most likely, if it cannot be opened.
    """

    label: object
    url: str
    protocols: tuple[str, ...]
    format: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    problem: str = "not a video, or cut off before its index"


@contextmanager
def open_stream(source: VideoInput) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video and its default video stream. Nothing else is read, even if the video refers to it."""
    label = source.label
    limit = {"max_pixels": str(MAX_PIXELS)}
    refused = _NOT_VIDEO_FORMATS - {source.format}
    formats = (name for name in av.formats_available if refused.isdisjoint(name.split(",")))
    access = {"protocol_whitelist": ",".join(source.protocols), "format_whitelist": ",".join(formats)}
    with refusing(f"{label}: {source.problem}"):
        try:
            container = av.open(
                source.url,
                format=source.format,
                options=dict(source.options) | access | limit,
                metadata_errors="backslashreplace",
                timeout=source.seconds,
            )
        except av.ProtocolNotFoundError as error:
            raise InputError(f"{label}: this PyAV cannot use this kind of URL") from error
    with container:
        with refusing(f"{label}: not a readable video"):
            stream = _choose(label, container)
            _check_pixels(label, stream)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            stream.codec_context.options = limit
            stream.thread_type = ThreadType.AUTO
        yield container, stream


def _choose(label: object, container: InputContainer) -> VideoStream:
    """The stream that a player would show: the default one; of several, FFmpeg's choice. Raises InputError if none."""
    candidates = _candidates(container)
    if not candidates:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{label}: no video stream, found {found}")
    known = [stream for stream in candidates if stream.codec_context is not None]
    if not known:
        raise InputError(f"{label}: the codec of the video stream is unknown")
    default = [stream for stream in known if "default" in _flags(stream)] or known
    best = container.streams.best("video")
    return next((stream for stream in default if best is not None and stream.index == best.index), default[0])


def _candidates(container: InputContainer) -> list[VideoStream]:
    return [stream for stream in container.streams.video if not _flags(stream) & _NOT_VIDEO_FLAGS]


def _flags(stream: VideoStream) -> set[str]:
    return {str(flag.name) for flag in stream.disposition}


def _note_choice(label: object, container: InputContainer, stream: VideoStream) -> None:
    candidates = _candidates(container)
    if len(candidates) > 1:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        logger.warning(
            "%s: found %d video streams, using number %d (%s)",
            label,
            len(candidates),
            1 + [candidate.index for candidate in candidates].index(stream.index),
            size,
        )


def _check_pixels(label: object, stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise InputError(f"{label}: frames of {width}x{height}, expected at most {MAX_PIXELS} pixels")


def frame_rate_of(stream: VideoStream) -> Fraction:
    """The average rate, if plausible; a file without a rate may state any number."""
    slowest, fastest = _FRAME_RATES
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and slowest <= rate <= fastest:
            return rate
    return DEFAULT_FRAME_RATE


def _seconds(frame: VideoFrame) -> float | None:
    """When a frame is shown; None if the file does not say."""
    time = frame.time if frame.pts is not None and frame.time_base else None
    return time if time is not None and math.isfinite(time) else None


def _check_complete(path: Path, container: InputContainer, stream: VideoStream) -> None:
    """Refuses a file that ends before the last packet of its index (MP4, MOV, AVI) or its stated end (Matroska)."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if "matroska" in container.format.name:
        end = containers.stated_end(path) or end
    size = path.stat().st_size
    if end > size:
        raise InputError(f"{path}: truncated: it should have {end} bytes, but has {size}")
