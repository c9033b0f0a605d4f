"""The masks a user gives, as files: which frame each belongs to, all checked before anything is computed."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, reading, require_present
from stm_fast.listing import list_images, list_masks
from stm_fast.video import (
    VOID,
    VOID_NOTE,
    Frame,
    FrameReader,
    has_void,
    object_ids,
    read_mask,
    require_objects,
    without_void,
)
from stm_fast.whole_file import same_file


class GivenMasks(NamedTuple):
    """Mask files by the index of their frame.

    Attributes:
        size: W, H of the frames.
        ids: the objects of each.
        void: whether 255 is void, and not an object.
        palette: the colors of the first; None where it has none.
        notes: lines for the user: what a mask was taken for.
        digest: of all masks and their frames.
    """

    files: dict[int, Path]
    size: tuple[int, int]
    ids: dict[int, list[int]]
    void: bool = False
    palette: bytes | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""

    def read(self, index: int) -> npt.NDArray[np.uint8] | None:
        """The mask of a frame, ids [H, W]; None where there is none. Raises InputError."""
        if index not in self.files:
            return None
        ids = read_mask(self.files[index], self.size).ids
        return without_void(ids) if self.void else ids

    def prompt(self, frame: Frame, known: list[int]) -> tuple[npt.NDArray[np.uint8], None] | None:
        """As `Prompts` in the loop: every object of the mask counts."""
        ids = self.read(frame.index)
        return None if ids is None else (ids, None)

    def check_all_used(self, frame_count: int) -> None:
        """Raises InputError for a mask beyond the end, which a source that does not count its frames cannot refuse."""
        for index, file in self.files.items():
            if index >= frame_count:
                raise InputError(f"{file}: no frame for this mask, the video ended after {frame_count} frames")


def mask_files(masks: Path) -> list[Path]:
    """The mask, or those of the folder of masks; none where there is no such file or folder."""
    with reading(masks):
        if masks.is_file():
            return [masks]
        return list_masks(masks) if masks.is_dir() else []


def find_masks(masks: str | Path, reader: FrameReader, mask_frame: int | str | None = None) -> GivenMasks:
    """The masks of a video: one picture, or a folder of them that are named as their frames.

    One mask belongs to the frame whose name it has, as "00033" in a video, and to the first where it has no frame's.

    Args:
        masks: the mask or the folder.
        reader: of the video.
        mask_frame: the frame that one mask belongs to, whatever its name: an index, or a name.

    Raises InputError: no such file, no mask in the folder, a name that no frame has, two masks of one frame, no such
    `mask_frame`, or one for a folder, a mask that is the video itself, and any mask without objects, or that read_mask
    refuses.
    """
    path = Path(masks)
    require_present(path, "mask file or folder of masks")
    found = mask_files(path)
    for file in found:
        if same_file(file, reader.path):
            raise InputError(f"{file}: found as video and as mask, expected two files")
    notes = list(_left_out(reader))
    if found != [path]:
        notes += _other_pictures(path, found, reader)
        files = _files_by_frame(path, found, reader)
        if mask_frame is not None:
            raise InputError(f"mask_frame: found {mask_frame!r} with the folder {path}, expected it with one mask")
    elif mask_frame is not None:
        files = {_index_of(mask_frame, reader): path}
    else:
        index, note = _index_by_name(path, reader)
        files = {index: path}
        notes += note
    return _checked(files, (reader.width, reader.height), notes)


def _checked(files: dict[int, Path], size: tuple[int, int], notes: list[str]) -> GivenMasks:
    """Reads every mask once. Raises InputError for one that cannot be used."""
    ids: dict[int, list[int]] = {}
    noted: dict[str, list[Path]] = {}
    palette: bytes | None = None
    digest = hashlib.sha256()
    for index, file in sorted(files.items()):
        mask = read_mask(file, size)
        require_objects(mask.ids, file)
        for part in (str(index).encode(), mask.ids.tobytes(), mask.palette or b""):
            digest.update(part + b"|")
        palette = palette if ids else mask.palette
        ids[index] = object_ids(mask.ids)
        if mask.note is not None:
            noted.setdefault(mask.note, []).append(file)
    void = has_void(set().union(*ids.values()))
    if void:
        noted[VOID_NOTE] = [files[index] for index, found in ids.items() if VOID in found]
        ids = {index: [one for one in found if one != VOID] for index, found in ids.items()}
        for index, found in ids.items():
            if not found:
                file = files[index]
                raise InputError(f"{file}: mask without objects: nothing but {VOID}, which is void beside others")
    notes = notes + [f"{_named(of_note)}: {note}" for note, of_note in noted.items()]
    return GivenMasks(files, size, ids, void, palette, tuple(notes), digest.hexdigest())


def _named(files: Sequence[Path]) -> str:
    return f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _left_out(reader: FrameReader) -> Iterator[str]:
    if reader.left_out:
        yield f"{_named(reader.left_out)}: given as mask, and so left out of the frames"


def _other_pictures(folder: Path, masks: list[Path], reader: FrameReader) -> Iterator[str]:
    """A note where a folder of PNGs holds pictures that could be meant as masks too."""
    others = sorted(set(list_images(folder)) - set(masks))
    if masks and others and not same_file(folder, reader.path):
        yield f"{_named(others)}: left out, because the masks beside it are PNGs"


def _index_by_name(file: Path, reader: FrameReader) -> tuple[int, list[str]]:
    """The frame whose name a mask has as it is written here, else the first; and a note where a number says another."""
    name, index = file.stem, reader.index_of(file.stem)
    other = "mask_frame names another"
    if index == 0:
        return 0, []
    if index is None or reader.name_of(index) != name:
        told = name.isdecimal() and name != reader.name
        return 0, [f"{file}: no frame has this name, so it is taken for the first one; {other}"] if told else []
    if name == reader.name:
        return 0, [f"{file}: named as the video, so it is taken for the first frame; {other}"]
    return index, [f"{file}: named as frame {name}, so it is taken for that; {other}"]


def _index_of(mask_frame: int | str, reader: FrameReader) -> int:
    """The frame that a user names: text is a name, or an index where no frame has that name."""
    index = reader.index_of(mask_frame) if isinstance(mask_frame, str) else mask_frame
    if index is None and re.fullmatch("[0-9]{1,18}", str(mask_frame)):
        index = int(mask_frame)
    count = reader.frame_count
    if index is None or index < 0 or (count is not None and index >= count):
        most = "" if count is None else f" to {count - 1}"
        raise InputError(
            f"mask_frame: found {mask_frame!r}, expected the name of a frame of {reader.name}, or an index from 0{most}"
        )
    name = reader.name_of(index)
    # frames that are counted from 1
    if isinstance(mask_frame, str) and name.isdecimal() and int(name) != int(mask_frame):
        raise InputError(f"mask_frame: found {mask_frame}, but the frame of that index is {name}; expected a name")
    return index


def _files_by_frame(folder: Path, found: list[Path], reader: FrameReader) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for file in found:
        index = reader.index_of(file.stem)
        if index is None:
            raise InputError(f"{file}: no frame of {reader.name} has this name, expected masks named as their frames")
        if index in files:
            raise InputError(f"{file}: a mask of the same frame as {files[index].name}")
        files[index] = file
    if not files:
        raise InputError(f"{folder}: no mask in this folder, expected PNGs named as their frames")
    return files
