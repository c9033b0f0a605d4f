"""Pictures in, pictures out: readers of frames, masks of ids, writers, overlays. All streaming."""

from stm_fast.video.masks import (
    DAVIS_PALETTE,
    Mask,
    check_mask_size,
    object_ids,
    read_mask,
    require_objects,
    write_mask,
)
from stm_fast.video.overlay import draw_overlay
from stm_fast.video.reader import Frame, FrameReader, open_frames
from stm_fast.video.writer import MaskWriter, OverlayPictureWriter, OverlayVideoWriter

__all__ = [
    "DAVIS_PALETTE",
    "Frame",
    "FrameReader",
    "Mask",
    "MaskWriter",
    "OverlayPictureWriter",
    "OverlayVideoWriter",
    "check_mask_size",
    "draw_overlay",
    "object_ids",
    "open_frames",
    "read_mask",
    "require_objects",
    "write_mask",
]
