"""Writes the results of a run: files for each frame, a table of all frames, and videos.

A video starts over in a resumed run. What it shows of the frames that an earlier process segmented is read from their
files.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stm_fast.choices import Result
from stm_fast.errors import require_file
from stm_fast.inference.sightings import Watch
from stm_fast.runs.loop import Ids, Segmented
from stm_fast.runs.object_table import ObjectTable
from stm_fast.runs.output_folder import MATTES, START_AGAIN, VIDEOS, parts_of, remove_earlier
from stm_fast.video import (
    VIDEO_WRITERS,
    CutoutWriter,
    FrameReader,
    MaskWriter,
    OverlayImageWriter,
    SoftMaskWriter,
    VideoWriter,
    draw_overlay,
    read_written_mask,
)
from stm_fast.video.stream_writer import OverlayStreamWriter
from stm_fast.whole_file import remove_left_over, writing

# writes the results of one frame after the other; those of a frame without ids exist already
Sink = Callable[[Segmented], None]
# what a video shows of a frame: uint8 [H, W], [H, W, 3] or [H, W, 4]
Picture = Callable[[Segmented], npt.NDArray[np.uint8]]

_MATTE_VIDEOS: frozenset[Result] = frozenset({"matte", "alpha", "webm"})
_OF_PROB: frozenset[Result] = _MATTE_VIDEOS | {"cutout", "soft"}


def needs_prob(write: Collection[Result]) -> bool:
    """Whether one of these results is made from the probabilities of a frame."""
    return not _OF_PROB.isdisjoint(write)


def shows_frames(write: Collection[Result]) -> bool:
    """Whether one of these results is a video, which a resumed run starts over."""
    return not VIDEOS.keys().isdisjoint(write)


def require_encoders(folder: Path, write: Collection[Result]) -> None:
    """Raises InputError if one of the results in `folder` is a video that cannot be encoded on this machine."""
    for kind in VIDEO_WRITERS:
        if kind.result in write:
            kind.require_encoder(folder / VIDEOS[kind.result])


def matte_of(prob: Tensor) -> Ids:
    """The matte [H, W] uint8 of all objects together, 255 times their probability: prob [1 + O, H, W] on the CPU."""
    matte: Ids = np.rint(255 * (1 - prob[0].numpy())).astype(np.uint8)
    return matte


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


def mattes_to(writer: MaskWriter) -> Sink:
    """Writes the matte of each frame, for videos that a resumed run starts over."""

    def write(segmented: Segmented) -> None:
        if segmented.prob is not None:
            writer.write(segmented.frame.name, matte_of(segmented.prob))

    return write


def cutouts_to(writer: CutoutWriter) -> Sink:
    """Writes what the matte of each frame shows of it."""

    def write(segmented: Segmented) -> None:
        if segmented.prob is not None:
            writer.write(segmented.frame.name, segmented.frame.image, matte_of(segmented.prob))

    return write


def soft_masks_to(writer: SoftMaskWriter) -> Sink:
    """Writes the probabilities of each object in each frame."""

    def write(segmented: Segmented) -> None:
        if segmented.prob is not None:
            for object_id, plane in zip(segmented.object_ids, segmented.prob[1:], strict=True):
                writer.write(segmented.frame.name, object_id, plane.numpy())

    return write


def video_to(writer: VideoWriter, picture: Picture) -> Sink:
    """Writes a video."""
    return lambda segmented: writer.write(picture(segmented), segmented.frame.time)


def overlay_of(masks: Path, palette: bytes | None) -> Picture:
    """Draws masks on frames; masks that an earlier process wrote are in the folder `masks`."""

    def draw(segmented: Segmented) -> npt.NDArray[np.uint8]:
        frame, ids = segmented.frame, segmented.ids
        if ids is None:
            ids = read_written_mask(masks / f"{frame.name}.png").ids
        return draw_overlay(frame.image, ids, palette)

    return draw


def matte_from(mattes: Path) -> Picture:
    """Gives the matte of a frame; those from an earlier process are in the folder `mattes`."""

    def matte(segmented: Segmented) -> Ids:
        if segmented.prob is not None:
            return matte_of(segmented.prob)
        path = mattes / f"{segmented.frame.name}.png"
        require_file(path, f"the matte that an earlier process wrote; {START_AGAIN}")
        return read_written_mask(path).ids

    return matte


def with_alpha(matte: Picture) -> Picture:
    """Gives frames with their mattes as alpha channel, straight."""
    return lambda segmented: np.dstack((segmented.frame.image, matte(segmented)))


def overlay_stream_to(writer: OverlayStreamWriter, palette: bytes | None) -> Sink:
    """Writes frames with their masks drawn on them, as a live stream. A resumed run goes on where it stopped."""

    def write(segmented: Segmented) -> None:
        frame, ids = segmented.frame, segmented.ids
        if ids is not None:
            writer.write(draw_overlay(frame.image, ids, palette), frame.time)

    return write


class Results(ExitStack):
    """The results of a run, in a `with` block that ends with complete videos or none.

    Nothing is written before `open`, which only one of several processes calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sinks: list[Sink] = []
        self._syncs: list[Callable[[], None]] = []
        self._table: ObjectTable | None = None

    def open(
        self,
        folder: Path,
        reader: FrameReader,
        palette: bytes | None,
        write: Collection[Result],
        done: range,
        checksum: int,
        *,
        in_order: bool = True,
        areas: Mapping[int, int] | None = None,
    ) -> None:
        """Prepares the folder.

        Masks, the table, and the mattes of videos are always written, because resuming a run needs them; see
        `remove_working_files`.

        Args:
            write: the results that the user asked for.
            done: the indices of the frames that are segmented, in the order in which frames come. If there are none,
                earlier results are removed, because a shorter run must not leave frames of a longer one.
            checksum: of the table of these frames.
            in_order: whether frames come in the order of the video, from the first on. Otherwise no video is written;
                a later `open` of the same folder, to which all frames come in order, writes them.
            areas: as of `Watch`, before the first frame.
        """
        if not done:
            with writing(folder):
                remove_earlier(folder)
        # from a killed process
        for part in (folder, *parts_of(folder)):
            remove_left_over(part)
        self._open_frame_files(folder, palette, write)
        if in_order:
            self._open_videos(folder, reader, palette, write)
        self._table = self.enter_context(closing(ObjectTable(folder, done, checksum if done else None, areas)))
        self._add(self._table.write, self._table.sync)

    def stream(self, destination: str | Path, reader: FrameReader, palette: bytes | None) -> None:
        """Also streams the overlay."""
        writer = OverlayStreamWriter(destination, reader.width, reader.height, reader.frame_rate)
        self._add(overlay_stream_to(self.enter_context(writer), palette))

    def write(self, segmented: Segmented) -> None:
        """Writes the results of one frame."""
        for sink in self._sinks:
            sink(segmented)

    @property
    def checksum(self) -> int:
        """Of the table; 0 before `open`."""
        return 0 if self._table is None else self._table.checksum

    @property
    def watch(self) -> Watch | None:
        """Sees the objects of the next frame, for the table; None before `open`."""
        return None if self._table is None else self._table.watch

    def sync(self) -> None:
        """Waits until masks, overlay images and the table are on disk."""
        for sync in self._syncs:
            sync()

    def _open_frame_files(self, folder: Path, palette: bytes | None, write: Collection[Result]) -> None:
        masks = MaskWriter(folder / "masks", palette)
        self._add(masks_to(masks), masks.sync)
        if not _MATTE_VIDEOS.isdisjoint(write):
            mattes = MaskWriter(folder / MATTES)
            self._add(mattes_to(mattes), mattes.sync)
        if "pictures" in write:
            pictures = OverlayImageWriter(folder / "overlay")
            self._add(overlay_images_to(pictures, palette), pictures.sync)
        if "cutout" in write:
            cutouts = CutoutWriter(folder / "cutout")
            self._add(cutouts_to(cutouts), cutouts.sync)
        if "soft" in write:
            soft_masks = SoftMaskWriter(folder / "soft")
            self._add(soft_masks_to(soft_masks), soft_masks.sync)

    def _open_videos(self, folder: Path, reader: FrameReader, palette: bytes | None, write: Collection[Result]) -> None:
        matte = matte_from(folder / MATTES)
        pictures = {"overlay": overlay_of(folder / "masks", palette), "matte": matte}
        for kind in VIDEO_WRITERS:
            if kind.result in write:
                sound = reader.sound() if kind.result == "overlay" else None
                video = kind(folder / VIDEOS[kind.result], reader.width, reader.height, reader.frame_rate, sound)
                self._add(video_to(self.enter_context(video), pictures.get(kind.result, with_alpha(matte))))

    def _add(self, sink: Sink, *syncs: Callable[[], None]) -> None:
        self._sinks.append(sink)
        self._syncs += syncs
