"""A video stream, opened by FFmpeg with nothing but what it may use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream

from stm_fast.errors import InputError, refusing

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
# PyAV before 19 must be told to decode metadata that are not UTF-8; later versions have no such argument
_ANY_METADATA: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "backslashreplace"}
)


class VideoInput(NamedTuple):
    """What FFmpeg opens, and what it may use for that.

    Attributes:
        label: for messages.
        url: with its protocol: without one, a name with a colon would be taken as a protocol. Or an open file.
        protocols: that may be used.
        format: the container format; None to detect it, among those that refer to no other file.
        options: of the format and the protocol.
        seconds: the time limits of opening and of each read; None for no limit.
        problem: what is wrong, most likely, if it cannot be opened.
    """

    label: object
    url: str | BinaryIO
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
                timeout=source.seconds,
                **_ANY_METADATA,
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


def note_choice(label: object, container: InputContainer, stream: VideoStream) -> None:
    """Says which video stream was chosen, if there are several."""
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
