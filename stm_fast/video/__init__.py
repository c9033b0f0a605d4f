"""Frame readers, masks of object ids, writers and overlays. Everything streams."""

from stm_fast.video.excerpt import Excerpt
from stm_fast.video.frames import Frame, FrameReader
from stm_fast.video.mask_image import MaskImage, read_mask, read_written_mask
from stm_fast.video.masks import (
    DAVIS_PALETTE,
    VOID,
    VOID_NOTE,
    has_void,
    object_ids,
    require_objects,
    without_void,
    write_mask,
)
from stm_fast.video.overlay import draw_overlay
from stm_fast.video.reader import open_frames
from stm_fast.video.video_writer import VIDEO_WRITERS, OverlayVideoWriter, VideoWriter
from stm_fast.video.writer import CutoutWriter, MaskWriter, OverlayImageWriter, SoftMaskWriter

__all__ = [
    "DAVIS_PALETTE",
    "VIDEO_WRITERS",
    "VOID",
    "VOID_NOTE",
    "CutoutWriter",
    "Excerpt",
    "Frame",
    "FrameReader",
    "MaskImage",
    "MaskWriter",
    "OverlayImageWriter",
    "OverlayVideoWriter",
    "SoftMaskWriter",
    "VideoWriter",
    "draw_overlay",
    "has_void",
    "object_ids",
    "open_frames",
    "read_mask",
    "read_written_mask",
    "require_objects",
    "without_void",
    "write_mask",
]
