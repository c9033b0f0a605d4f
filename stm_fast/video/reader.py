"""The door to every source of frames."""

from collections.abc import Iterable
from pathlib import Path

from stm_fast.errors import InputError, reading, require_present
from stm_fast.video.frames import Frame, FrameReader
from stm_fast.video.picture_folder import PictureFolder
from stm_fast.video.video_file import VideoFile

__all__ = ["Frame", "FrameReader", "open_frames"]


def open_frames(source: str | Path, masks: Iterable[Path] = ()) -> FrameReader:
    """Frames of a video file or of a folder of jpg, png or webp pictures.

    Args:
        source: the file or folder.
        masks: files that are no frames, should they lie among the pictures.

    Raises InputError before any work where the source is missing, is no video, is truncated or has pictures of
    different sizes; while iterating, at a frame that cannot be decoded.
    """
    path = Path(source)
    with reading(path):
        if path.is_dir():
            return PictureFolder(path, masks)
        require_present(path, "file or folder")
        if not path.is_file():
            raise InputError(f"{path}: not a regular file")
    return VideoFile(path)
