"""An engine over a video."""

from stm_fast.inference.engine import Segmentation, VideoSegmenter
from stm_fast.inference.pipeline import Summary, segment_video

__all__ = ["Segmentation", "Summary", "VideoSegmenter", "segment_video"]
