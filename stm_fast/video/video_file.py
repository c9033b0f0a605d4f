"""Frames of a video file, decoded by PyAV: exact, in presentation order, with their own time stamps."""

from __future__ import annotations

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
from stm_fast.video.pyav import require_av

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# frames per second where the file states none
DEFAULT_FRAME_RATE = Fraction(25)
# FFmpeg draws plain text as a terminal would; nobody means that
NOT_VIDEO_FORMATS = frozenset({"tty"})
# of the number of a frame
_MOST_DIGITS = 18


class VideoFile(FrameReader):
    """Frames of the first video stream of a file; constant and variable frame rate, rotation applied.

    What the file says of its length is compared with its size and the first frame is decoded, so that what is not a
    whole video is refused before work starts. Pixels are taken as stored: a non-square pixel aspect is not stretched.

    Raises InputError: not a video, no video stream, truncated, or no frame in it.
    """

    def __init__(self, path: Path) -> None:
        require_av(path)
        self.path = path
        self.name = path.stem
        with _open_stream(path) as (container, stream):
            _check_complete(path, container, stream)
            self.frame_count = stream.frames or None
            self.frame_rate = stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE
            first = next(self._decode(container, stream))
        self.height, self.width = first.image.shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        with _open_stream(self.path) as (container, stream):
            for frame in self._decode(container, stream):
                if frame.image.shape[:2] != (self.height, self.width):
                    height, width = frame.image.shape[:2]
                    raise InputError(
                        f"{self.path}: frame {frame.index} is {width}x{height}, expected {self.width}x{self.height} "
                        "as frame 0"
                    )
                yield frame

    def index_of(self, name: str) -> int | None:
        if not (name.isascii() and name.isdigit() and len(name) <= _MOST_DIGITS):
            return None
        return int(name) if self.frame_count is None or int(name) < self.frame_count else None

    def name_of(self, index: int) -> str:
        return f"{index:05d}"

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[Frame]:
        time = 0.0
        for index, picture in enumerate(self._pictures(container, stream)):
            stamp = None if picture.pts is None else picture.time
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

    def _pictures(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """What the decoder gives. Raises InputError at a damaged frame, and where there is none at all."""
        import av

        decoded = container.decode(stream)
        index = 0
        while True:
            try:
                picture = next(decoded, None)
            except (av.FFmpegError, MemoryError) as error:
                raise InputError(f"{self.path}: frame {index} cannot be decoded ({_reason(error)})") from error
            if picture is None:
                break
            if picture.is_corrupt:
                raise InputError(f"{self.path}: frame {index} is corrupt")
            yield picture
            index += 1
        if index == 0:
            raise InputError(f"{self.path}: the video stream holds no frame")


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video stream. Only this local file is read, whatever it refers to."""
    import av
    from av.codec.context import ThreadType

    try:
        # the prefix keeps a colon in a name from being read as a protocol
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a video, or cut off before its index ({_reason(error)})") from error
    with container:
        if container.format.name in NOT_VIDEO_FORMATS:
            raise InputError(f"{path}: not a video, a text file")
        # the cover picture of a sound file is a video stream of one frame
        streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
        if not streams:
            found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise InputError(f"{path}: no video stream, found {found}")
        streams[0].thread_type = ThreadType.AUTO
        yield container, streams[0]


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
    """What the display matrix of a decoded frame says, to the nearest quarter turn."""
    stored: Any = picture.side_data.get("DISPLAYMATRIX")
    a, b, c, d = 1, 0, 0, 1
    if stored is not None:
        # x' = a x + c y, y' = b x + d y, in the layout of the tkhd matrix of ISO/IEC 14496-12
        a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()
    transpose = abs(a) < abs(b)
    across, down = (c, b) if transpose else (a, d)
    return _Orientation(transpose, slice(None, None, -1 if down < 0 else 1), slice(None, None, -1 if across < 0 else 1))


def _reason(error: BaseException) -> str:
    """The system's words for an error, without the file name that FFmpeg adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
