"""Writers of results, one frame at a time: masks, an overlay video, overlay images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError, option
from stm_fast.video.masks import write_mask
from stm_fast.video.pyav import require_av
from stm_fast.whole_file import make_folder, new_partial, sync, whole_file, writing

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# time stamp ticks per second: the unit of MPEG, a multiple of 24, 25, 30, 50, 60 and 30000/1001
CLOCK = 90_000
# x264's constant quality, without its macroblock tree, which reads uninitialized memory: equal frames would give
# different files. Files are 5 to 13 % larger than those of 20 with the tree, with the same PSNR within 0.1 dB
ENCODER_OPTIONS: dict[str, object] = {"preset": "veryfast", "crf": "22", "mbtree": "0"}
JPEG_QUALITY = 90
# between two frames, which MP4 stores in 31 bits
MAX_TICKS = 2**31 - 1
# matrix, primaries and transfer of ITU-R BT.709, limited range, as browsers assume
BT709 = 1
LIMITED_RANGE = 1


class FileWriter:
    """One file per frame, written completely or not at all. Raises InputError if the folder cannot be created."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._not_synced: list[Path] = []
        make_folder(self.folder)

    def sync(self) -> None:
        """Waits until everything written is on disk and would survive a power failure."""
        for path in (*self._not_synced, self.folder):
            with writing(path):
                sync(path)
        self._not_synced.clear()

    def _path(self, name: str) -> Path:
        self._not_synced.append(self.folder / name)
        return self._not_synced[-1]


class MaskWriter(FileWriter):
    """Writes `folder/<name>.png`; `palette` as in `write_mask`."""

    def __init__(self, folder: str | Path, palette: bytes | None = None) -> None:
        super().__init__(folder)
        self.palette = palette

    def write(self, name: str, ids: npt.NDArray[np.uint8]) -> None:
        """Writes the mask [H, W] uint8 of one frame."""
        write_mask(self._path(f"{name}.png"), ids, self.palette)


class OverlayImageWriter(FileWriter):
    """Writes `folder/<name>.jpg`."""

    def write(self, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Writes the image uint8 [H, W, 3] RGB of one frame."""
        with whole_file(self._path(f"{name}.jpg")) as partial:
            Image.fromarray(image).save(partial, format="JPEG", quality=JPEG_QUALITY)


class OverlayVideoWriter:
    """H.264 yuv420p MP4 that browsers play, with the index first; every frame keeps its own time stamp.

    H.264 at 4:2:0 needs even sizes: an odd width or height is padded with a copy of the last column or row. Gaps of
    more than 6.6 hours, the limit of MP4, are shortened to that. The file has a temporary name until `close()`;
    `abort()`, or an exception in a `with` block, leaves no file.
    """

    def __init__(self, path: str | Path, width: int, height: int, frame_rate: Fraction) -> None:
        """Size in pixels; `frame_rate` in frames per second, the average if it varies.

        Raises InputError if PyAV or its H.264 encoder is missing, or the file cannot be written.
        """
        self.path = Path(path)
        self.width, self.height = width, height
        self.frame_rate = Fraction(frame_rate)
        require_av(self.path)
        make_folder(self.path.parent)
        self._partial = new_partial(self.path)
        self._last_tick = -1
        with self._encoding():
            self._container: OutputContainer | None = _open_mp4(self._partial)
            try:
                self._stream = self._add_stream(self._container)
            except BaseException:
                self.abort()
                raise

    def write(self, image: npt.NDArray[np.uint8], time: float) -> None:
        """Appends one frame, uint8 [H, W, 3] RGB, shown from `time` seconds on. Times must not decrease.

        Raises InputError if it cannot be written; the video is then aborted.
        """
        if self._container is None:
            raise ValueError(f"{self.path}: the video is closed")
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            found = f"{image.dtype} {image.shape}"
            raise ValueError(f"image: {found}, expected uint8 [{self.height}, {self.width}, 3]")
        tick = max(round(time * CLOCK), self._last_tick + 1)
        self._last_tick = tick if self._last_tick < 0 else min(tick, self._last_tick + MAX_TICKS)
        self._encode(self._container, self._to_frame(image))

    def close(self) -> None:
        """Finishes the file under its final name; without any frame there is no file. A second call does nothing."""
        if self._container is None:
            return
        if self._last_tick < 0:
            self.abort()
            return
        self._encode(self._container, None)
        try:
            with self._encoding():
                self._container.close()
                os.replace(self._partial, self.path)
        except BaseException:
            self.abort()
            raise
        self._container = None

    def abort(self) -> None:
        """Discards the video and removes what was written. Does nothing after `close()`."""
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
            others = f"{option('overlay', 'pictures')} or {option('overlay', 'none')}"
            raise InputError(f"{self.path}: cannot be encoded ({error}); use {others}") from error

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        import av

        try:
            stream = container.add_stream("libx264", rate=self.frame_rate)
        except av.codec.codec.UnknownCodecError as error:
            raise InputError(f"{self.path}: this PyAV has no H.264 encoder (libx264)") from error
        stream.width = self.width + self.width % 2
        stream.height = self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = ENCODER_OPTIONS
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        stream.colorspace = stream.color_primaries = stream.color_trc = BT709
        stream.color_range = LIMITED_RANGE
        return stream

    def _to_frame(self, image: npt.NDArray[np.uint8]) -> VideoFrame:
        import av

        if self.width % 2 or self.height % 2:
            image = np.pad(image, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts = self._last_tick
        frame.time_base = Fraction(1, CLOCK)
        # without a duration the last frame would not be shown
        frame.duration = round(CLOCK / self.frame_rate)
        return frame

    def _encode(self, container: OutputContainer, frame: VideoFrame | None) -> None:
        """Encodes one frame, or flushes the encoder if None."""
        try:
            with self._encoding():
                for packet in self._stream.encode(frame):
                    container.mux(packet)
        except BaseException:
            self.abort()
            raise


def _open_mp4(path: Path) -> OutputContainer:
    import av

    # closing moves the index to the front, so that a web page can play the file while it loads
    return av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"})
