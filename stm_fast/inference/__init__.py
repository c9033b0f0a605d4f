"""An engine over a video."""

from stm_fast.inference.engine import Segmentation, VideoSegmenter, check_backend
from stm_fast.inference.estimation import Estimate, Run, estimate
from stm_fast.inference.pipeline import InterruptedRun, Summary, segment_video
from stm_fast.inference.results import check_output

__all__ = [
    "Estimate",
    "InterruptedRun",
    "Run",
    "Segmentation",
    "Summary",
    "VideoSegmenter",
    "check_backend",
    "check_output",
    "estimate",
    "segment_video",
]
