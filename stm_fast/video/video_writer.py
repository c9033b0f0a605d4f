"""Writers of videos: overlay, matte, and frames with the matte as alpha channel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from stm_fast.choices import Result
from stm_fast.errors import InputError, option
from stm_fast.video.pyav import require_av
from stm_fast.whole_file import make_folder, new_partial, writing

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from stm_fast.video.sound import Sound

# between two frames, which MP4 and MOV store in 31 bits
MAX_TICKS = 2**31 - 1
# matrix, primaries and transfer of ITU-R BT.709, limited range, as browsers assume
BT709 = 1
LIMITED_RANGE = 1
# of an image, by its pixel format
_CHANNELS: dict[str, tuple[int, ...]] = {"gray": (), "rgb24": (3,), "rgba": (4,)}
# luma of each gray level, in limited range
_LUMA = (16 + np.rint(np.arange(256) * 219 / 255)).astype(np.uint8)


class VideoWriter:
    """A video in which every frame keeps its own time stamp.

    An odd width or height is padded with a copy of the last column or row if the format needs even ones. Gaps of more
    than 6.6 hours, the limit of MP4, are shortened to that. The file has a temporary name until `close()`; `abort()`,
    or an exception in a `with` block, leaves no file. Equal frames give equal files.
    """

    result: ClassVar[Result]  # as the user names it
    encoder: ClassVar[str]
    encoder_options: ClassVar[dict[str, object]]
    format: ClassVar[str]
    format_options: ClassVar[dict[str, str]] = {}
    given_pixels: ClassVar[str]  # as FFmpeg names them
    stored_pixels: ClassVar[str]
    even_size: ClassVar[bool] = False
    # time stamp ticks per second: the unit of MPEG, a multiple of 24, 25, 30, 50, 60 and 30000/1001
    clock: ClassVar[int] = 90_000

    def __init__(
        self, path: str | Path, width: int, height: int, frame_rate: Fraction, sound: Sound | None = None
    ) -> None:
        """Size in pixels; `frame_rate` in frames per second, the average if it varies.

        The sound is closed with the video, and if this raises.

        Raises InputError if PyAV or its encoder is missing, or the file cannot be written.
        """
        self.path = Path(path)
        self.width, self.height = width, height
        self.frame_rate = Fraction(frame_rate)
        self._sound = sound
        self._last_tick = -1
        self._container: OutputContainer | None = None
        try:
            self.require_encoder(self.path)
            make_folder(self.path.parent)
            self._partial = new_partial(self.path)
            with self._encoding():
                self._container = self._open()
                self._stream = self._add_stream(self._container)
                if sound is not None:
                    sound.add_to(self._container)
        except BaseException:
            self.abort()
            raise

    @classmethod
    def require_encoder(cls, path: Path) -> None:
        """Raises InputError if the video at `path` cannot be encoded on this machine."""
        advice = f"leave {cls.result} out of {option('write')}"
        require_av(path, advice)
        import av

        try:
            av.Codec(cls.encoder, "w")
        except av.codec.codec.UnknownCodecError as error:
            raise InputError(f"{path}: this PyAV has no encoder {cls.encoder}; {advice}") from error

    def write(self, image: npt.NDArray[np.uint8], time: float) -> None:
        """Appends one frame, shown from `time` seconds on. Times must not decrease.

        Args:
            image: uint8; [H, W] for a matte, [H, W, 3] RGB for an overlay, [H, W, 4] RGBA with straight alpha
                otherwise.
            time: in seconds.

        Raises:
            InputError: it cannot be written; the video is then aborted.
        """
        if self._container is None:
            raise ValueError(f"{self.path}: the video is closed")
        expected = (self.height, self.width, *_CHANNELS[self.given_pixels])
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 {list(expected)}")
        tick = max(round(time * self.clock), self._last_tick + 1)
        self._last_tick = tick if self._last_tick < 0 else min(tick, self._last_tick + MAX_TICKS)
        self._mux(self._container, self._packets(self._to_frame(image)))

    def close(self) -> None:
        """Finishes the file under its final name; without any frame there is no file. A second call does nothing."""
        if self._container is None:
            return
        if self._last_tick < 0:
            self.abort()
            return
        self._mux(self._container, self._last_packets())
        try:
            with self._encoding():
                self._container.close()
                os.replace(self._partial, self.path)
        except BaseException:
            self.abort()
            raise
        self._container = None
        self._close_sound()

    def abort(self) -> None:
        """Discards the video and removes what was written. Does nothing after `close()`."""
        self._close_sound()
        if self._container is None:
            return
        import av

        container, self._container = self._container, None
        # on a full disk, closing the file fails too
        with suppress(OSError, ValueError, av.FFmpegError):
            container.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Turns system and FFmpeg errors inside the block into an InputError."""
        import av

        try:
            with writing(self.path):
                yield
        except av.FFmpegError as error:
            advice = f"leave {self.result} out of {option('write')}"
            raise InputError(f"{self.path}: cannot be encoded ({error}); {advice}") from error

    def _open(self) -> OutputContainer:
        import av

        return av.open(f"file:{self._partial}", "w", format=self.format, options=self.format_options)

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        stream: VideoStream = container.add_stream(self.encoder, rate=self.frame_rate)  # type: ignore[assignment]
        stream.width, stream.height = self.width, self.height
        if self.even_size:
            stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = self.stored_pixels
        stream.options = self.encoder_options
        stream.time_base = stream.codec_context.time_base = Fraction(1, self.clock)
        stream.colorspace = stream.color_primaries = stream.color_trc = BT709
        stream.color_range = LIMITED_RANGE
        return stream

    def _to_frame(self, image: npt.NDArray[np.uint8]) -> VideoFrame:
        if self.even_size and (self.width % 2 or self.height % 2):
            missing = [(0, self.height % 2), (0, self.width % 2), (0, 0)]
            image = np.pad(image, missing[: image.ndim], mode="edge")
        frame = self._converted(image)
        frame.pts = self._last_tick
        frame.time_base = Fraction(1, self.clock)
        # without a duration the last frame would not be shown
        frame.duration = round(self.clock / self.frame_rate)
        return frame

    def _converted(self, image: npt.NDArray[np.uint8]) -> VideoFrame:
        import av

        given = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=self.given_pixels)
        return given.reformat(format=self.stored_pixels, dst_colorspace="ITU709", dst_color_range="MPEG")

    @property
    def _last_time(self) -> Fraction:
        return Fraction(self._last_tick, self.clock)

    def _packets(self, frame: VideoFrame) -> Iterator[Packet[Any]]:
        """What is written with a frame: the sound before it, and what the encoder gives."""
        if self._sound is not None:
            yield from self._sound.until(self._last_time)
        yield from self._stream.encode(frame)

    def _last_packets(self) -> Iterator[Packet[Any]]:
        """What is written at the end: the sound of the last frame, and what the encoders hold."""
        if self._sound is not None:
            yield from self._sound.until(self._last_time + 1 / self.frame_rate)
            yield from self._sound.rest()
        yield from self._stream.encode(None)

    def _close_sound(self) -> None:
        if self._sound is not None:
            self._sound.close()

    def _mux(self, container: OutputContainer, packets: Iterator[Packet[Any]]) -> None:
        try:
            with self._encoding():
                for packet in packets:
                    container.mux(packet)
        except BaseException:
            self.abort()
            raise


class OverlayVideoWriter(VideoWriter):
    """H.264 yuv420p MP4 that browsers play, with the index first, so that it plays while it loads."""

    result: ClassVar[Result] = "overlay"
    encoder = "libx264"
    # constant quality, without x264's macroblock tree, which reads uninitialized memory: equal frames would give
    # different files. Files are 5 to 13 % larger than those of 20 with the tree, with the same PSNR within 0.1 dB
    encoder_options: ClassVar[dict[str, object]] = {"preset": "veryfast", "crf": "22", "mbtree": "0"}
    format = "mp4"
    format_options: ClassVar[dict[str, str]] = {"movflags": "+faststart"}
    given_pixels, stored_pixels, even_size = "rgb24", "yuv420p", True


class MatteVideoWriter(OverlayVideoWriter):
    """The same in gray: white is the object."""

    result = "matte"
    encoder_options: ClassVar[dict[str, object]] = OverlayVideoWriter.encoder_options | {"crf": "18"}
    given_pixels = "gray"

    def _converted(self, image: npt.NDArray[np.uint8]) -> VideoFrame:
        import av

        # FFmpeg's conversion gives a tinge of color
        height, width = image.shape
        planes = np.full((height * 3 // 2, width), 128, np.uint8)  # luma, then both chroma planes
        planes[:height] = _LUMA[image]
        return av.VideoFrame.from_ndarray(planes, format="yuv420p")


class AlphaVideoWriter(VideoWriter):
    """ProRes 4444 in MOV, which editing programs read, with straight (not premultiplied) alpha."""

    result = "alpha"
    encoder = "prores_ks"
    # a fixed quantizer, 2 in units of FFmpeg's FF_QP2LAMBDA: four times as fast as searching one for each slice
    encoder_options: ClassVar[dict[str, object]] = {"profile": "4444", "flags": "+qscale", "global_quality": "236"}
    format = "mov"
    given_pixels, stored_pixels = "rgba", "yuva444p10le"


class WebmVideoWriter(VideoWriter):
    """VP9 in WebM, which browsers show with straight alpha. Times are in whole milliseconds."""

    result = "webm"
    encoder = "libvpx-vp9"
    # without reordered frames, which would not have alpha
    encoder_options: ClassVar[dict[str, object]] = {
        "crf": "24",
        "b": "0",
        "deadline": "realtime",
        "cpu-used": "6",
        "lag-in-frames": "0",
        "auto-alt-ref": "0",
    }
    format = "webm"
    # without random identifiers
    format_options: ClassVar[dict[str, str]] = {"fflags": "+bitexact"}
    given_pixels, stored_pixels = "rgba", "yuva420p"
    clock = 1000


VIDEO_WRITERS: tuple[type[VideoWriter], ...] = (OverlayVideoWriter, MatteVideoWriter, AlphaVideoWriter, WebmVideoWriter)
