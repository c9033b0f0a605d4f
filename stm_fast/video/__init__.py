"""Pictures in, pictures out: readers of frames, masks of ids, writers, overlays. All streaming."""

from stm_fast.video.mask_picture import MaskPicture
from stm_fast.video.masks import (
    DAVIS_PALETTE,
    VOID,
    VOID_NOTE,
    has_void,
    object_ids,
    read_mask,
    read_written_mask,
    require_objects,
    without_void,
    write_mask,
)
from stm_fast.video.overlay import draw_overlay
from stm_fast.video.reader import Frame, FrameReader, open_frames
from stm_fast.video.writer import MaskWriter, OverlayPictureWriter, OverlayVideoWriter

__all__ = [
    "DAVIS_PALETTE",
    "VOID",
    "VOID_NOTE",
    "Frame",
    "FrameReader",
    "MaskPicture",
    "MaskWriter",
    "OverlayPictureWriter",
    "OverlayVideoWriter",
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
