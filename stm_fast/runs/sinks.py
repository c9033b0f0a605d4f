"""Where the frames of a run go: masks/<frame>.png, scores.csv, and overlay.mp4 or overlay/<frame>.jpg."""

from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from stm_fast.choices import Overlay
from stm_fast.errors import require_file
from stm_fast.runs.loop import Segmented
from stm_fast.runs.output_folder import START_AGAIN, parts_of, remove_earlier
from stm_fast.runs.score_table import ScoreTable
from stm_fast.video import (
    FrameReader,
    MaskWriter,
    OverlayPictureWriter,
    OverlayVideoWriter,
    draw_overlay,
    read_written_mask,
)
from stm_fast.whole_file import remove_left_over, writing


class Sink(Protocol):
    """Takes the frames of a run, in order."""

    def write(self, segmented: Segmented) -> None:
        """Writes what belongs to one frame. Without ids, an earlier process has."""

    def sync(self) -> None:
        """Waits until what was written of single frames is on the disk."""


class MaskSink:
    """Masks as palette PNGs.

    Args:
        only: the names of the frames whose masks are wanted; None for all.
    """

    def __init__(self, folder: Path, palette: bytes | None = None, only: Collection[str] | None = None) -> None:
        self._writer, self._only = MaskWriter(folder, palette), only

    def write(self, segmented: Segmented) -> None:
        """Raises InputError where the mask that an earlier process has written is gone."""
        name = segmented.frame.name
        if segmented.ids is None:
            require_file(self._writer.folder / f"{name}.png", f"the mask that an earlier process wrote; {START_AGAIN}")
        elif self._only is None or name in self._only:
            self._writer.write(name, segmented.ids)

    def sync(self) -> None:
        """See `Sink`."""
        self._writer.sync()


class OverlayPictureSink:
    """Frames with their masks drawn on them, as pictures."""

    def __init__(self, folder: Path, palette: bytes | None) -> None:
        self._writer, self._palette = OverlayPictureWriter(folder), palette

    def write(self, segmented: Segmented) -> None:
        """See `Sink`."""
        if segmented.ids is not None:
            picture = draw_overlay(segmented.frame.image, segmented.ids, self._palette)
            self._writer.write(segmented.frame.name, picture)

    def sync(self) -> None:
        """See `Sink`."""
        self._writer.sync()


class OverlayVideoSink:
    """The same as a video, which a resumed run writes from its first frame.

    Args:
        masks: folder of the masks that an earlier process has written.
    """

    def __init__(self, writer: OverlayVideoWriter, masks: Path, palette: bytes | None) -> None:
        self._writer, self._masks, self._palette = writer, masks, palette

    def write(self, segmented: Segmented) -> None:
        """See `Sink`."""
        frame, ids = segmented.frame, segmented.ids
        if ids is None:
            ids = read_written_mask(self._masks / f"{frame.name}.png").ids
        self._writer.write(draw_overlay(frame.image, ids, self._palette), frame.time)

    def sync(self) -> None:
        """Nothing: the video is whole at its end or not there."""


class Results:
    """The output folder of a run. A context manager: an overlay video is whole or not there at all.

    Until it is opened nothing is written: so it stays in a process that leaves writing to another one.
    """

    def __init__(self) -> None:
        self._sinks: list[Sink] = []
        self._scores: ScoreTable | None = None
        self._stack = ExitStack()

    def open(
        self, folder: Path, reader: FrameReader, palette: bytes | None, overlay: Overlay, done: int, scores: int
    ) -> None:
        """Makes the folder ready.

        Args:
            done: frames that an earlier process has segmented. Where there are none, earlier results in the folder are
                removed first: a shorter run must not leave frames of a longer one.
            scores: the checksum of the table of scores of these frames, as `sync` gave it.
        """
        if not done:
            with writing(folder):
                remove_earlier(folder)
        # of a process that was killed
        for part in (folder, *parts_of(folder)):
            remove_left_over(part)
        masks, pictures = parts_of(folder)
        self._sinks.append(MaskSink(masks, palette))
        if overlay == "video":
            writer = OverlayVideoWriter(folder / "overlay.mp4", reader.width, reader.height, reader.frame_rate)
            self._sinks.append(OverlayVideoSink(self._stack.enter_context(writer), masks, palette))
        elif overlay == "pictures":
            self._sinks.append(OverlayPictureSink(pictures, palette))
        self._scores = self._stack.enter_context(closing(ScoreTable(folder, done, scores if done else None)))
        self._sinks.append(self._scores)

    def write(self, segmented: Segmented) -> None:
        """Writes what belongs to one frame."""
        for sink in self._sinks:
            sink.write(segmented)

    def sync(self) -> int:
        """Waits until what was written of single frames is on the disk; the checksum of the table of scores."""
        for sink in self._sinks:
            sink.sync()
        return 0 if self._scores is None else self._scores.checksum

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
