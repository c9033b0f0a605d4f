"""Opens any source of frames."""

from collections.abc import Iterable
from pathlib import Path

from stm_fast.errors import InputError, reading, require_present
from stm_fast.video.frames import FrameReader
from stm_fast.video.image_folder import ImageFolder
from stm_fast.video.pyav import require_av
from stm_fast.video.tiff_stack import TiffStack, is_tiff


def open_frames(source: str | Path, masks: Iterable[Path] = ()) -> FrameReader:
    """Frames of a video file, of a TIFF file with several pages, or of a folder of jpg, png, webp or tif images.

    Args:
        source: the file or folder.
        masks: files that are not frames, even if they are in the folder.

    Raises:
        InputError: before any work, if the source is missing, is not a video, is truncated or has images of different
            sizes; while iterating, at a frame that cannot be decoded.
    """
    path = Path(source)
    with reading(path):
        if path.is_dir():
            return ImageFolder(path, masks)
        require_present(path, "file or folder")
        if not path.is_file():
            raise InputError(f"{path}: not a regular file")
    if is_tiff(path):
        return TiffStack(path)
    require_av(path)
    from stm_fast.video.video_file import VideoFile  # imports PyAV

    return VideoFile(path)
