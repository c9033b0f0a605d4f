"""The masks a user gives, as files: which frame each belongs to, all checked before anything is computed."""

from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, reading
from stm_fast.video import FrameReader, check_mask_size, read_mask, require_objects


class GivenMasks(NamedTuple):
    """Mask files by the index of their frame, and the colours of the first (None where it has none)."""

    files: dict[int, Path]
    palette: bytes | None


def find_masks(masks: str | Path, reader: FrameReader) -> GivenMasks:
    """The masks of a video: one PNG for its first frame, or a folder of PNGs that are named as their frames.

    Raises InputError: no such file, no PNG in the folder, a name that no frame has, two masks of one frame, and any
    mask without objects, of another size than the frames, or that read_mask refuses.
    """
    path = Path(masks)
    with reading(path):
        files = {0: path} if path.is_file() else _files_by_frame(path, reader)
    palette: bytes | None = None
    for index in sorted(files, reverse=True):
        mask = read_mask(files[index])
        check_mask_size(mask, files[index], reader.width, reader.height)
        require_objects(mask, files[index])
        palette = mask.palette
    return GivenMasks(files, palette)


def _files_by_frame(folder: Path, reader: FrameReader) -> dict[int, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such mask file or folder of masks")
    files: dict[int, Path] = {}
    for file in sorted(file for file in folder.glob("*.png") if file.name[0] != "."):
        index = reader.index_of(file.stem)
        if index is None:
            raise InputError(f"{file}: no frame of {reader.name} has this name, expected masks named as their frames")
        if index in files:
            raise InputError(f"{file}: a mask of the same frame as {files[index].name}")
        files[index] = file
    if not files:
        raise InputError(f"{folder}: no mask in this folder, expected PNG files named as their frames")
    return files
