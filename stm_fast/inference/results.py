"""What a run leaves in its output folder: masks/<frame>.png, and overlay.mp4 or overlay/<frame>.jpg."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, reading
from stm_fast.inference.checkpointing import RECORD, STATES
from stm_fast.video import (
    Frame,
    FrameReader,
    MaskWriter,
    OverlayPictureWriter,
    OverlayVideoWriter,
    draw_overlay,
    read_mask,
)
from stm_fast.whole_file import LEFT_OVER, refuse_links, remove_left_over, writing

Overlay = Literal["video", "pictures", "none"]
# of a chain, beyond which Linux calls it a loop
_MOST_LINKS = 40


def check_output(folder: Path, overwrite: bool, inputs: Iterable[Path] = (), *, resume: bool = False) -> None:
    """Raises InputError where the folder holds anything and nobody said that it may be overwritten, or an input.

    The folder may be a link, which its user has made: a way to another disk. What a run makes inside it may not.

    Args:
        resume: the run may be one that goes on: an interrupted one in the folder is not in its way.
    """
    with reading(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: found a file, expected an output folder")
        refuse_links(*_parts(folder))
        check_apart([folder], inputs)
        if overwrite or not _holds_anything(folder):
            return
        recorded = (folder / RECORD).exists()
    if recorded and not resume:
        raise InputError(f"{folder}: holds a run; --resume goes on with it, --overwrite starts again")
    if not recorded:
        why = "not empty, and holds no interrupted run" if resume else "not empty"
        raise InputError(f"{folder}: the output folder is {why}; give another one, or --overwrite")


def check_apart(folders: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises InputError where a folder of results holds an input, or a file of one, be it behind a link.

    Earlier results are removed, and the input would be one of them.
    """
    outputs = {Path(os.path.realpath(folder)): folder for folder in folders}
    for path in inputs:
        with reading(path):
            places = [(file, place) for file in (path, *_links_in(path)) for place in _places(file)]
        for file, place in places:
            for above in (place, *place.parents):
                if above in outputs:
                    raise InputError(f"{outputs[above]}: the output folder holds the input {file}; give another one")


def remove_results(folder: Path) -> None:
    """Removes what a run left there, its checkpoint too. Raises InputError where that is not possible."""
    with writing(folder):
        for earlier in (folder / RECORD, *folder.glob(STATES)):
            earlier.unlink(missing_ok=True)
        _remove_earlier(folder)
        for part in _parts(folder):
            with suppress(OSError):  # not there, or the user has put something in it
                part.rmdir()


class Results:
    """Writes masks and overlays as they come. A context manager: an overlay video is whole or not there at all.

    Earlier results in the folder are removed first, unless `resumed`: a shorter run must not leave frames of a longer
    one.
    """

    def __init__(
        self, folder: Path, reader: FrameReader, palette: bytes | None, overlay: Overlay, *, resumed: bool = False
    ) -> None:
        self._palette = palette
        if not resumed:
            with writing(folder):
                _remove_earlier(folder)
        # of a process that was killed
        for part in (folder, *_parts(folder)):
            remove_left_over(part)
        masks, pictures = _parts(folder)
        self._masks = MaskWriter(masks, palette)
        self._video: OverlayVideoWriter | None = None
        self._pictures: OverlayPictureWriter | None = None
        if overlay == "video":
            self._video = OverlayVideoWriter(folder / "overlay.mp4", reader.width, reader.height, reader.frame_rate)
        elif overlay == "pictures":
            self._pictures = OverlayPictureWriter(pictures)

    def write(self, frame: Frame, ids: npt.NDArray[np.uint8]) -> None:
        """Writes what belongs to one frame; ids ``[H, W]``."""
        self._masks.write(frame.name, ids)
        if self._video is None and self._pictures is None:
            return
        picture = draw_overlay(frame.image, ids, self._palette)
        if self._video is not None:
            self._video.write(picture, frame.time)
        if self._pictures is not None:
            self._pictures.write(frame.name, picture)

    def sync(self) -> None:
        """Waits until what was written of single frames is on the disk."""
        self._masks.sync()
        if self._pictures is not None:
            self._pictures.sync()

    def redraw(self, frame: Frame) -> None:
        """Puts a frame whose mask was written by an earlier process into the overlay video, which has to start anew."""
        if self._video is not None:
            ids = read_mask(self._masks.folder / f"{frame.name}.png", most_ids=None).ids
            self._video.write(draw_overlay(frame.image, ids, self._palette), frame.time)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._video is not None:
            self._video.__exit__(kind, error, trace)


class NoResults:
    """In place of `Results` in a process that helps another one, which writes."""

    def write(self, frame: Frame, ids: npt.NDArray[np.uint8]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

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


def _holds_anything(folder: Path) -> bool:
    """Whether there is more in it than what a process that was killed had not finished."""
    return folder.is_dir() and any(not path.match(LEFT_OVER) for path in folder.iterdir())


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders of masks and of overlays."""
    return folder / "masks", folder / "overlay"


def _remove_earlier(folder: Path) -> None:
    masks, overlay = _parts(folder)
    for earlier in (*masks.glob("*.png"), *overlay.glob("*.jpg"), folder / "overlay.mp4"):
        earlier.unlink(missing_ok=True)


def _places(path: Path) -> Iterator[Path]:
    """Where a path lies, and where it leads, link by link."""
    for _ in range(_MOST_LINKS):
        # a ".." is left only at the end, behind what is no link
        path = Path(os.path.normpath(os.path.realpath(path.parent) + os.sep + path.name))
        yield path
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()


def _links_in(folder: Path) -> Iterator[Path]:
    """The entries of a folder that are links."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (folder / entry.name for entry in entries if entry.is_symlink())
