"""An engine over a video."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.inference.engine import Segmentation, VideoSegmenter, check_backend
    from stm_fast.inference.estimation import Estimate, Run, estimate
    from stm_fast.inference.output_folder import check_output
    from stm_fast.inference.pipeline import InterruptedRun, Summary, segment_video
    from stm_fast.inference.process_group import wait_for_all
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "stm_fast.inference.engine": ("Segmentation", "VideoSegmenter", "check_backend"),
            "stm_fast.inference.estimation": ("Estimate", "Run", "estimate"),
            "stm_fast.inference.output_folder": ("check_output",),
            "stm_fast.inference.pipeline": ("InterruptedRun", "Summary", "segment_video"),
            "stm_fast.inference.process_group": ("wait_for_all",),
        },
    )

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
    "wait_for_all",
]
