"""A run over a video: the loop over its frames, its input and its output."""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.runs.video import InterruptedRun, Summary, segment_video
else:
    __getattr__, __dir__ = lazy_names(__name__, {"stm_fast.runs.video": ("InterruptedRun", "Summary", "segment_video")})

__all__ = ["InterruptedRun", "Summary", "segment_video"]
