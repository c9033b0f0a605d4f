"""Frames of a video file, decoded by PyAV: exact, in presentation order, with their own time stamps."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError
from stm_fast.video import matroska
from stm_fast.video.frames import Frame, FrameReader
from stm_fast.video.packet_count import PacketCount
from stm_fast.video.pyav import require_av

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# frames per second where the file states none, or none that a camera has
DEFAULT_FRAME_RATE = Fraction(25)
_FRAME_RATES = (Fraction(1, 24 * 3600), Fraction(10_000))
# of a frame: 16K UHD. A file of some kilobytes can hold a larger one, of a single colour
MOST_PIXELS = 15_360 * 8_640
# flags of streams that are no video: covers, thumbnails, stills, and what is a part of another stream
_NOT_VIDEO_FLAGS = frozenset({"attached_pic", "timed_thumbnails", "still_image", "dependent"})
# what names other files, or devices; and plain text, which FFmpeg draws as a terminal would
_NOT_VIDEO_FORMATS = frozenset(
    {"concat", "dash", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sdp", "tty", "webm_dash_manifest"}
)
# of the number of a frame
_MOST_DIGITS = 18


class VideoFile(FrameReader):
    """Frames of the default video stream of a file; constant and variable frame rate, rotation applied.

    What the file says of its length is compared with its size, its frames are counted without decoding them, and the
    first frame is decoded, so that what is not a whole video is refused before work starts. Pixels are taken as stored:
    a non-square pixel aspect is not stretched.

    Raises InputError: not a video, no video stream, truncated, frames of more than MOST_PIXELS, or no frame in it.
    """

    def __init__(self, path: Path) -> None:
        require_av(path)
        self.path = path
        self.name = path.stem
        with _open_stream(path) as (container, stream):
            _check_complete(path, container, stream)
            _note_choice(path, container, stream)
            self.frame_rate = _frame_rate(stream)
            count = PacketCount(path, container, stream)
            packets = count.watch(container.demux(stream))
            first = next(self._decode(packets))
            self.frame_count = _finish(count, packets)
        self.height, self.width = first.image.shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        decoded = 0
        with _open_stream(self.path) as (container, stream):
            for frame in self._decode(container.demux(stream)):
                if frame.image.shape[:2] != (self.height, self.width):
                    height, width = frame.image.shape[:2]
                    raise InputError(
                        f"{self.path}: frame {frame.index} is {width}x{height}, expected {self.width}x{self.height} "
                        "as frame 0"
                    )
                yield frame
                decoded += 1
        if self.frame_count not in (None, decoded):
            # decoders leave out frames of a damaged file without a word
            logger.warning("%s: damaged: %d frames could be decoded of %d", self.path, decoded, self.frame_count)

    def index_of(self, name: str) -> int | None:
        if not (name.isascii() and name.isdigit() and len(name) <= _MOST_DIGITS):
            return None
        return int(name) if self.frame_count is None or int(name) < self.frame_count else None

    def name_of(self, index: int) -> str:
        return f"{index:05d}"

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[Frame]:
        time = 0.0
        for index, picture in enumerate(self._pictures(packets)):
            stamp = _stamp(picture)
            with _failing(f"{self.path}: frame {index} cannot be decoded"):
                if index == 0:
                    origin = stamp or 0.0
                    # asked once: PyAV's side data and its frame hold each other until the garbage collector runs
                    orientation = _orientation(picture)
                elif stamp is not None and stamp - origin > time:
                    time = stamp - origin
                else:
                    # some containers (AVI) state no usable time stamps: go on at the frame rate
                    time += float(1 / self.frame_rate)
                image = cast(npt.NDArray[np.uint8], picture.to_ndarray(format="rgb24"))  # [H, W, 3]
            yield Frame(index, time, self.name_of(index), orientation.apply(image))

    def _pictures(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """What the decoder gives. Raises InputError at a damaged frame, and where there is none at all."""
        decoded = _decoded(packets)
        index = 0
        while True:
            with _failing(f"{self.path}: frame {index} cannot be decoded"):
                picture = next(decoded, None)
            if picture is None:
                break
            if picture.is_corrupt:
                raise InputError(f"{self.path}: frame {index} is corrupt")
            yield picture
            index += 1
        if index == 0:
            raise InputError(f"{self.path}: the video stream holds no frame")


def _decoded(packets: Iterator[Packet[VideoStream]]) -> Iterator[VideoFrame]:
    last = None
    for packet in packets:
        # an empty one stands for the end, which PyAV adds; some containers (AVI) repeat a frame with one
        if packet.size:
            yield from packet.decode()
        else:
            last = packet
    if last is not None:
        yield from last.decode()


def _finish(count: PacketCount, packets: Iterator[Packet[VideoStream]]) -> int | None:
    """The number of frames; None where the file is damaged, whose frame is named when it is reached."""
    import av

    try:
        return count.finish(packets)
    except av.FFmpegError:
        return None


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its default video stream. No other file is read, whatever this one refers to."""
    import av
    from av.codec.context import ThreadType
    from av.stream import Discard

    limit = {"max_pixels": str(MOST_PIXELS)}
    formats = (name for name in av.formats_available if _NOT_VIDEO_FORMATS.isdisjoint(name.split(",")))
    access = {"protocol_whitelist": "file", "format_whitelist": ",".join(formats)}
    with _failing(f"{path}: not a video, or cut off before its index"):
        # the prefix keeps a colon in a name from being read as a protocol
        container = av.open(f"file:{path}", options=access | limit, metadata_errors="backslashreplace")
    with container:
        with _failing(f"{path}: not a readable video"):
            stream = _choose(path, container)
            _check_pixels(path, stream)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            stream.codec_context.options = limit
            stream.thread_type = ThreadType.AUTO
        yield container, stream


def _choose(path: Path, container: InputContainer) -> VideoStream:
    """The video stream that a player would show: the default one, of several FFmpeg's choice.

    Raises InputError where there is none.
    """
    candidates = _candidates(container)
    if not candidates:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{path}: no video stream, found {found}")
    known = [stream for stream in candidates if stream.codec_context is not None]
    if not known:
        raise InputError(f"{path}: the codec of the video stream is not known")
    default = [stream for stream in known if "default" in _flags(stream)] or known
    best = container.streams.best("video")
    return next((stream for stream in default if best is not None and stream.index == best.index), default[0])


def _candidates(container: InputContainer) -> list[VideoStream]:
    return [stream for stream in container.streams.video if not _flags(stream) & _NOT_VIDEO_FLAGS]


def _flags(stream: VideoStream) -> set[str]:
    return {str(flag.name) for flag in stream.disposition}


def _note_choice(path: Path, container: InputContainer, stream: VideoStream) -> None:
    candidates = _candidates(container)
    if len(candidates) > 1:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        logger.warning(
            "%s: found %d video streams, taken is number %d (%s)",
            path,
            len(candidates),
            1 + [candidate.index for candidate in candidates].index(stream.index),
            size,
        )


def _check_pixels(path: Path, stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MOST_PIXELS:
        raise InputError(f"{path}: frames of {width}x{height}, expected at most {MOST_PIXELS} pixels")


def _frame_rate(stream: VideoStream) -> Fraction:
    """The average; files state any nonsense where they have none."""
    slowest, fastest = _FRAME_RATES
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and slowest <= rate <= fastest:
            return rate
    return DEFAULT_FRAME_RATE


def _stamp(picture: VideoFrame) -> float | None:
    """When a frame is shown, in seconds; None where the file does not say."""
    time = picture.time if picture.pts is not None and picture.time_base else None
    return time if time is not None and math.isfinite(time) else None


def _check_complete(path: Path, container: InputContainer, stream: VideoStream) -> None:
    """Refuse a file that ends before the last packet of its own index (MP4, MOV, AVI), or its stated end (Matroska)."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if "matroska" in container.format.name:
        end = matroska.stated_end(path) or end
    size = path.stat().st_size
    if end > size:
        raise InputError(f"{path}: truncated: it says that it reaches to byte {end}, the file has {size}")


@dataclass(frozen=True)
class _Orientation:
    """Quarter turns and mirrorings as one transposition, then flips."""

    transpose: bool
    rows: slice
    columns: slice

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A picture [H, W, 3] as it should be seen, contiguous."""
        turned = image.transpose(1, 0, 2) if self.transpose else image
        return np.ascontiguousarray(turned[self.rows, self.columns])


def _orientation(picture: VideoFrame) -> _Orientation:
    """What the display matrix of a decoded frame says, to the nearest quarter turn; upright where that is none."""
    stored: Any = picture.side_data.get("DISPLAYMATRIX")
    a, b, c, d = 1, 0, 0, 1
    if stored is not None:
        # x' = a x + c y, y' = b x + d y, in the layout of the tkhd matrix of ISO/IEC 14496-12
        a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()
    transpose = abs(a) < abs(b) and abs(d) < abs(c)
    if not (transpose or (abs(a) > abs(b) and abs(d) > abs(c))):
        a, d = 1, 1
    across, down = (c, b) if transpose else (a, d)
    return _Orientation(transpose, slice(None, None, -1 if down < 0 else 1), slice(None, None, -1 if across < 0 else 1))


@contextmanager
def _failing(message: str) -> Iterator[None]:
    """Turns what PyAV raises inside the block into an InputError: for a hostile file that is open-ended."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{message} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The system's words for an error, in one line and without the file name that FFmpeg adds."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split()) or type(error).__name__
