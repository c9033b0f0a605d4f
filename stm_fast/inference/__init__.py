"""The engine: the objects of a video, segmented frame by frame."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.inference.engine import Segmentation, VideoSegmenter, check_backend
    from stm_fast.inference.options import RunOptions
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["RunOptions", "Segmentation", "VideoSegmenter", "check_backend"]
