"""One run of a video: the loop over its frames, what goes in, and what comes out."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.runs.video import InterruptedRun, Summary, segment_video
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["InterruptedRun", "Summary", "segment_video"]
