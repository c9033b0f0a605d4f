"""Opens any source of frames."""

from collections.abc import Callable, Iterable
from pathlib import Path

from stm_fast.errors import InputError, reading, require_present
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.video.frames import FrameReader
from stm_fast.video.image_folder import ImageFolder
from stm_fast.video.pyav import require_av
from stm_fast.video.tiff_stack import TiffStack, is_tiff


def open_frames(
    source: str | Path | FrameSource,
    masks: Iterable[Path] = (),
    *,
    allow_network: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> FrameReader:
    """Frames of a video, of a TIFF file with several pages, or of jpg, png, webp or tif images.

    Args:
        source: a file or a folder of images; or an image glob, a video in a store ("s3://bucket/clip.mp4"), a URL,
            "camera:0", a named pipe, or "-", see `frame_source`.
        masks: files that are not frames, even if they are in the folder.
        allow_network: accept a URL that is not in a store, and use the network for it.
        should_stop: of a live source: asked several times a second; the frames end when it returns True.

    Raises:
        InputError: before any work, if the source is missing, is not a video, is truncated or has images of different
            sizes; while iterating, at a frame that cannot be decoded.
    """
    source = frame_source(source, allow_network=allow_network)
    if source.kind == "glob":
        files = source.files
        return ImageFolder(files[0].parent, masks, files)
    source.check()
    if source.kind == "path":
        return _open_path(Path(source.text), masks)
    require_av(source.label)
    if source.url is not None:
        from stm_fast.video.stored_video import StoredVideo  # imports PyAV

        return StoredVideo(source.url)
    from stm_fast.video.live import open_stream_of  # imports PyAV

    return open_stream_of(source, should_stop)


def _open_path(path: Path, masks: Iterable[Path]) -> FrameReader:
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
