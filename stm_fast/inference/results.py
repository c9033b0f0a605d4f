"""What a run leaves in its output folder: masks/<frame>.png, scores.csv, and overlay.mp4 or overlay/<frame>.jpg."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

import numpy as np
import numpy.typing as npt

from stm_fast.choices import Overlay
from stm_fast.errors import InputError, require_file
from stm_fast.inference.output_folder import parts_of, remove_earlier
from stm_fast.inference.score_table import ScoreTable
from stm_fast.video import (
    Frame,
    FrameReader,
    MaskWriter,
    OverlayImageWriter,
    OverlayVideoWriter,
    draw_overlay,
    read_written_mask,
)
from stm_fast.whole_file import remove_left_over, writing


class Results:
    """Writes masks, scores and overlays as they come. A context manager: an overlay video is whole or not there at all.

    Args:
        done: frames that an earlier process has segmented. Where there are none, earlier results in the folder are
            removed first: a shorter run must not leave frames of a longer one.
        scores: the checksum of the table of scores of these frames, as `sync` gave it.
    """

    def __init__(
        self,
        folder: Path,
        reader: FrameReader,
        palette: bytes | None,
        overlay: Overlay,
        *,
        done: int = 0,
        scores: int | None = None,
    ) -> None:
        self._palette = palette
        if not done:
            with writing(folder):
                remove_earlier(folder)
        # of a process that was killed
        for part in (folder, *parts_of(folder)):
            remove_left_over(part)
        masks, pictures = parts_of(folder)
        self._masks = MaskWriter(masks, palette)
        self._video: OverlayVideoWriter | None = None
        self._pictures: OverlayImageWriter | None = None
        if overlay == "video":
            self._video = OverlayVideoWriter(folder / "overlay.mp4", reader.width, reader.height, reader.frame_rate)
        elif overlay == "pictures":
            self._pictures = OverlayImageWriter(pictures)
        self._scores = ScoreTable(folder, done, scores if done else None)

    def write(self, frame: Frame, ids: npt.NDArray[np.uint8], scores: Mapping[int, float]) -> None:
        """Writes what belongs to one frame; ids ``[H, W]``, and the score of each object."""
        self._masks.write(frame.name, ids)
        self._scores.write(frame, ids, scores)
        if self._video is None and self._pictures is None:
            return
        picture = draw_overlay(frame.image, ids, self._palette)
        if self._video is not None:
            self._video.write(picture, frame.time)
        if self._pictures is not None:
            self._pictures.write(frame.name, picture)

    def sync(self) -> int:
        """Waits until what was written of single frames is on the disk; the checksum of the table of scores."""
        self._masks.sync()
        if self._pictures is not None:
            self._pictures.sync()
        return self._scores.sync()

    def redraw(self, frame: Frame) -> None:
        """Puts a frame whose mask was written by an earlier process into the overlay video, which has to start anew.

        Raises InputError where that mask is gone.
        """
        mask = self._masks.folder / f"{frame.name}.png"
        require_file(mask, "the mask that an earlier process wrote; start again with --overwrite")
        if self._video is not None:
            ids = read_written_mask(mask).ids
            self._video.write(draw_overlay(frame.image, ids, self._palette), frame.time)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._scores.close()
        finally:
            if self._video is not None:
                self._video.__exit__(kind, error, trace)


class NoResults:
    """In place of `Results` in a process that helps another one, which writes."""

    def write(self, frame: Frame, ids: npt.NDArray[np.uint8], scores: Mapping[int, float]) -> None:
        """Does nothing."""

    def sync(self) -> int:
        """Does nothing."""
        return 0

    def redraw(self, frame: Frame) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def check_overlay(overlay: str) -> None:
    """Raises InputError where there is no such overlay."""
    if overlay not in get_args(Overlay):
        raise InputError(f"overlay: found {overlay!r}, expected one of {', '.join(get_args(Overlay))}")
