"""The overlay as a live stream: to a pipe, to standard output or to a growing file."""

import logging
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError
from stm_fast.printing import stdout_for_data
from stm_fast.video.video_writer import OverlayVideoWriter

if TYPE_CHECKING:
    from av.container import OutputContainer

logger = logging.getLogger(__name__)

_STANDARD_OUTPUT = "-"


class OverlayStreamWriter(OverlayVideoWriter):
    """H.264 in MPEG-TS, or in Matroska if the name ends in .mkv: every frame can be seen as soon as it is written.

    Writes to a named pipe, whose reader it waits for, to standard output ("-"), or to a new file. A reader that closes
    the pipe ends the stream, with a note, and no error.
    """

    # each frame leaves the encoder at once, and a player that joins waits for at most 50 frames
    encoder_options: ClassVar[dict[str, object]] = {"preset": "veryfast", "crf": "22", "tune": "zerolatency", "g": "50"}

    def __init__(self, destination: str | Path, width: int, height: int, frame_rate: Fraction) -> None:
        """Size in pixels; `frame_rate` in frames per second.

        Raises InputError if the file exists already, cannot be written, or PyAV is missing.
        """
        self.path = Path(destination)
        self.width, self.height, self.frame_rate = width, height, Fraction(frame_rate)
        self._sound = None
        self._last_tick = -1
        self.require_encoder(self.path)
        with self._encoding():
            self._file = _opened(self.path)
            try:
                self._container: OutputContainer | None = self._open()
                self._stream = self._add_stream(self._container)
            except BaseException:
                self._file.close()
                raise

    def write(self, image: npt.NDArray[np.uint8], time: float) -> None:
        """Writes one frame, uint8 [H, W, 3] RGB, shown from `time` seconds on. Nothing once the reader is gone.

        Raises InputError if it cannot be written.
        """
        if self._container is None:
            return
        try:
            super().write(image, time)
            with self._encoding():
                self._file.flush()
        except InputError as error:
            if not isinstance(error.__cause__, BrokenPipeError):
                raise
            self.close()
            logger.warning("%s: the reader of the overlay stream has closed it; the run continues", self.path)

    def close(self) -> None:
        """Ends the stream. A second call does nothing."""
        if self._container is None:
            return
        import av

        container, self._container = self._container, None
        with suppress(OSError, ValueError, av.FFmpegError):  # the reader may be gone
            container.close()
        with suppress(OSError):
            self._file.close()

    def abort(self) -> None:
        """The same: what was streamed stays."""
        self.close()

    def _open(self) -> "OutputContainer":
        import av

        kind = "matroska" if self.path.suffix.lower() == ".mkv" else "mpegts"
        return av.open(self._file, "w", format=kind, options={"flush_packets": "1"})


def _opened(path: Path) -> BinaryIO:
    if str(path) == _STANDARD_OUTPUT:
        return stdout_for_data()
    return path.open("wb" if path.is_fifo() else "xb")
