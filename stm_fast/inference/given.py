"""The masks a user gives, as files: which frame each belongs to, all checked before anything is computed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, reading, require_present
from stm_fast.video import FrameReader, check_mask_size, read_mask, require_objects
from stm_fast.whole_file import same_file


class GivenMasks(NamedTuple):
    """Mask files by the index of their frame.

    Attributes:
        palette: the colours of the first; None where it has none.
        notes: lines for the user: what a mask was taken for.
    """

    files: dict[int, Path]
    palette: bytes | None
    notes: tuple[str, ...] = ()


def mask_files(masks: Path) -> list[Path]:
    """The mask, or the PNGs of the folder of masks; none where there is no such file or folder."""
    with reading(masks):
        if masks.is_file():
            return [masks]
        return sorted(file for file in masks.glob("*.png") if file.name[0] != ".")


def find_masks(masks: str | Path, reader: FrameReader, mask_frame: int | str | None = None) -> GivenMasks:
    """The masks of a video: one PNG, or a folder of PNGs that are named as their frames.

    One PNG belongs to the frame whose name it has, as "00033" in a video, and to the first one where it has no frame's.

    Args:
        masks: the PNG or the folder.
        reader: of the video.
        mask_frame: the frame that one PNG belongs to, whatever its name: an index, or a name.

    Raises InputError: no such file, no PNG in the folder, a name that no frame has, two masks of one frame, no such
    `mask_frame`, or one for a folder, a mask that is the video itself, and any mask without objects, of another size
    than the frames, or that read_mask refuses.
    """
    path = Path(masks)
    require_present(path, "mask file or folder of masks")
    found = mask_files(path)
    for file in found:
        if same_file(file, reader.path):
            raise InputError(f"{file}: found as video and as mask, expected two files")
    notes = list(_left_out(reader))
    if found != [path]:
        files = _files_by_frame(path, found, reader)
        if mask_frame is not None:
            raise InputError(f"mask_frame: found {mask_frame!r} with the folder {path}, expected it with one mask")
    elif mask_frame is not None:
        files = {_index_of(mask_frame, reader): path}
    else:
        index, note = _index_by_name(path, reader)
        files = {index: path}
        notes += note
    palette: bytes | None = None
    for index in sorted(files, reverse=True):
        mask = read_mask(files[index])
        check_mask_size(mask, files[index], reader.width, reader.height)
        require_objects(mask, files[index])
        palette = mask.palette
    return GivenMasks(files, palette, tuple(notes))


def _left_out(reader: FrameReader) -> Iterator[str]:
    if reader.left_out:
        more = f" and {len(reader.left_out) - 1} more" if len(reader.left_out) > 1 else ""
        yield f"{reader.left_out[0]}{more}: given as mask, and so left out of the frames"


def _index_by_name(file: Path, reader: FrameReader) -> tuple[int, list[str]]:
    """The frame whose name a mask has as it is written here, else the first; and a note where a number says another."""
    name, index = file.stem, reader.index_of(file.stem)
    other = "mask_frame (--mask-frame) names another"
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
        raise InputError(f"{folder}: no mask in this folder, expected PNG files named as their frames")
    return files
