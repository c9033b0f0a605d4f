"""The mask files that a user gives: which frame each belongs to. All are checked before anything is computed."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, Message, option, require_present
from stm_fast.listing import split_masks
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
        ids: the objects of each mask.
        void: whether 255 is void, and not an object.
        palette: the colors of the first mask; None if it has none.
        notes: how ambiguous input was interpreted, one line each.
        digest: SHA-256 of all masks and their frames.
    """

    files: dict[int, Path]
    size: tuple[int, int]
    ids: dict[int, list[int]]
    void: bool = False
    palette: bytes | None = None
    notes: tuple[Message, ...] = ()
    digest: str = ""

    def read(self, index: int) -> npt.NDArray[np.uint8] | None:
        """The mask of a frame, ids [H, W]; None if it has none. Raises InputError."""
        if index not in self.files:
            return None
        ids = read_mask(self.files[index], self.size).ids
        return without_void(ids) if self.void else ids

    def prompt(self, frame: Frame, known: list[int]) -> tuple[npt.NDArray[np.uint8], None] | None:
        """`Prompts` of the loop: every object of the mask counts."""
        ids = self.read(frame.index)
        return None if ids is None else (ids, None)

    def check_all_used(self, frame_count: int) -> None:
        """Raises InputError for a mask beyond the end of a video whose length was unknown."""
        for index, file in self.files.items():
            if index >= frame_count:
                raise InputError(f"{file}: no frame for this mask, the video ended after {frame_count} frames")


class MaskFiles(NamedTuple):
    """Where the masks of a video are.

    Attributes:
        path: the only mask, or the folder of masks.
        files: the masks.
        others: images next to them, which are not masks.
    """

    path: Path
    files: list[Path]
    others: list[Path]


def find_masks(path: Path, source: Path) -> MaskFiles:
    """Lists the masks of the video `source`: one file, or those of a folder.

    Raises InputError if there is no such file or folder, two masks have the same stem, or a mask is the video itself.
    """
    require_present(path, "mask file or folder of masks")
    files, others = ([path], []) if path.is_file() else split_masks(path)
    for file in files:
        if same_file(file, source):
            raise InputError(f"{file}: found as video and as mask, expected two files")
    # in the folder of the video, the other images are its frames
    return MaskFiles(path, files, [] if same_file(path, source) else others)


def match_masks(masks: MaskFiles, reader: FrameReader, mask_frame: int | str | None = None) -> GivenMasks:
    """Matches masks to the frames of a video by name, and reads each mask once.

    A single mask belongs to the frame that has its name, as "00033" in a video, or else to the first one.

    Args:
        reader: of the video.
        mask_frame: the frame that a single mask belongs to, regardless of its name: an index, or a name.

    Raises:
        InputError: no mask in the folder, a name that no frame has, two masks of one frame, no such `mask_frame`, a
            `mask_frame` with a folder of masks, or a mask that has no objects or that read_mask refuses.
    """
    notes = []
    if reader.left_out:
        notes.append(f"{_named(reader.left_out)}: given as a mask, so excluded from the frames")
    if masks.others:
        notes.append(f"{_named(masks.others)}: ignored, because the masks next to it are PNGs")
    if masks.files != [masks.path]:
        files = _files_by_frame(masks, reader)
        if mask_frame is not None:
            found = f"{mask_frame!r} with the folder {masks.path}"
            raise InputError(f"{option('mask_frame')}: found {found}, expected a single mask")
    elif mask_frame is not None:
        files = {_index_of(mask_frame, reader): masks.path}
    else:
        index, why = _index_by_name(masks.path, reader)
        files = {index: masks.path}
        notes += [f"{masks.path}: {why}; {option('mask_frame')} selects another"] if why else []
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
                why = f"nothing but {VOID}, which is void because other masks have other ids"
                raise InputError(f"{files[index]}: mask without objects: {why}")
    notes = notes + [f"{_named(of_note)}: {note}" for note, of_note in noted.items()]
    return GivenMasks(files, size, ids, void, palette, tuple(map(Message, notes)), digest.hexdigest())


def _named(files: Sequence[Path]) -> str:
    return f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _index_by_name(file: Path, reader: FrameReader) -> tuple[int, str]:
    """The frame that has exactly the mask's name, or else the first; and an explanation where that may surprise."""
    name, index = file.stem, reader.index_of(file.stem)
    if index == 0:
        return 0, ""
    if index is None or reader.name_of(index) != name:
        surprising = name.isdecimal() and name != reader.name
        return 0, "no frame has this name, so it is used for the first one" if surprising else ""
    if name == reader.name:
        return 0, "named after the video, so used for the first frame"
    return index, f"named after frame {name}, so used for that frame"


def _index_of(mask_frame: int | str, reader: FrameReader) -> int:
    """The index of the frame that a user selects: text is a name if a frame has it, otherwise an index."""
    index = reader.index_of(mask_frame) if isinstance(mask_frame, str) else mask_frame
    if index is None and re.fullmatch("[0-9]{1,18}", str(mask_frame)):
        index = int(mask_frame)
    count = reader.frame_count
    if index is None or index < 0 or (count is not None and index >= count):
        most = "" if count is None else f" to {count - 1}"
        raise InputError(
            f"{option('mask_frame')}: found {mask_frame!r}, expected the name of a frame of {reader.name}, "
            f"or an index from 0{most}"
        )
    name = reader.name_of(index)
    # names may be numbered from 1
    if isinstance(mask_frame, str) and name.isdecimal() and int(name) != int(mask_frame):
        found = f"{mask_frame}, but the frame at that index is {name}"
        raise InputError(f"{option('mask_frame')}: found {found}; expected a name")
    return index


def _files_by_frame(masks: MaskFiles, reader: FrameReader) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for file in masks.files:
        index = reader.index_of(file.stem)
        if index is None:
            raise InputError(f"{file}: no frame of {reader.name} has this name, expected masks named after frames")
        if index in files:
            raise InputError(f"{file}: a mask of the same frame as {files[index].name}")
        files[index] = file
    if not files:
        raise InputError(f"{masks.path}: no mask in this folder, expected PNGs named after their frames")
    return files
