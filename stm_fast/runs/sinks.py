"""Writes the results of a run: masks/<frame>.png, scores.csv, and overlay.mp4 or overlay/<frame>.jpg."""

from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from pathlib import Path

from stm_fast.choices import Result
from stm_fast.errors import require_file
from stm_fast.runs.loop import Segmented
from stm_fast.runs.output_folder import START_AGAIN, parts_of, remove_earlier
from stm_fast.runs.score_table import ScoreTable
from stm_fast.video import (
    FrameReader,
    MaskWriter,
    OverlayImageWriter,
    OverlayVideoWriter,
    draw_overlay,
    read_written_mask,
)
from stm_fast.whole_file import remove_left_over, writing

# writes the results of one frame after the other; those of a frame without ids exist already
Sink = Callable[[Segmented], None]


def masks_to(writer: MaskWriter, only: Collection[str] | None = None) -> Sink:
    """Writes masks as palette PNGs, of all frames or of those named in `only`.

    The sink raises InputError if a mask that an earlier process wrote is missing.
    """

    def write(segmented: Segmented) -> None:
        name = segmented.frame.name
        if segmented.ids is None:
            require_file(writer.folder / f"{name}.png", f"the mask that an earlier process wrote; {START_AGAIN}")
        elif only is None or name in only:
            writer.write(name, segmented.ids)

    return write


def overlay_images_to(writer: OverlayImageWriter, palette: bytes | None) -> Sink:
    """Writes frames with their masks drawn on them, as images."""

    def write(segmented: Segmented) -> None:
        if segmented.ids is not None:
            writer.write(segmented.frame.name, draw_overlay(segmented.frame.image, segmented.ids, palette))

    return write


def overlay_video_to(writer: OverlayVideoWriter, masks: Path, palette: bytes | None) -> Sink:
    """Writes the same as a video. In a resumed run the video starts over, with the existing `masks`."""

    def write(segmented: Segmented) -> None:
        frame, ids = segmented.frame, segmented.ids
        if ids is None:
            ids = read_written_mask(masks / f"{frame.name}.png").ids
        writer.write(draw_overlay(frame.image, ids, palette), frame.time)

    return write


class Results(ExitStack):
    """The results of a run, in a `with` block that ends with a complete overlay video or none.

    Nothing is written before `open`, which only one of several processes calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sinks: list[Sink] = []
        self._syncs: list[Callable[[], None]] = []
        self._scores: ScoreTable | None = None

    def open(
        self,
        folder: Path,
        reader: FrameReader,
        palette: bytes | None,
        write: Collection[Result],
        done: int,
        scores: int,
    ) -> None:
        """Prepares the folder.

        Masks and scores are always written, because resuming a run needs them; see `remove_working_files`.

        Args:
            write: the results that the user asked for.
            done: the number of frames that an earlier process has segmented. If there are none, earlier results are
                removed, because a shorter run must not leave frames of a longer one.
            scores: the checksum of the score table of these frames, from `sync`.
        """
        if not done:
            with writing(folder):
                remove_earlier(folder)
        # from a killed process
        for part in (folder, *parts_of(folder)):
            remove_left_over(part)
        masks, pictures, _ = parts_of(folder)
        mask_writer = MaskWriter(masks, palette)
        self._add(masks_to(mask_writer), mask_writer.sync)
        if "overlay" in write:
            video = OverlayVideoWriter(folder / "overlay.mp4", reader.width, reader.height, reader.frame_rate)
            self._add(overlay_video_to(self.enter_context(video), masks, palette))
        if "pictures" in write:
            picture_writer = OverlayImageWriter(pictures)
            self._add(overlay_images_to(picture_writer, palette), picture_writer.sync)
        self._scores = self.enter_context(closing(ScoreTable(folder, done, scores if done else None)))
        self._add(self._scores.write, self._scores.sync)

    def write(self, segmented: Segmented) -> None:
        """Writes the results of one frame."""
        for sink in self._sinks:
            sink(segmented)

    def sync(self) -> int:
        """Waits until masks, overlay images and scores are on disk; returns the checksum of the score table."""
        for sync in self._syncs:
            sync()
        return 0 if self._scores is None else self._scores.checksum

    def _add(self, sink: Sink, *syncs: Callable[[], None]) -> None:
        self._sinks.append(sink)
        self._syncs += syncs
