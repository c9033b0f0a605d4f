"""Space-Time Memory networks for video object segmentation, around one fused memory read.

Each name is imported when it is first used. Code that needs only the PyTorch operators, such as `torch.export.load`,
imports `stm_fast.ops`, which registers them.
"""

from typing import TYPE_CHECKING

from stm_fast.lazy import lazy_names

if TYPE_CHECKING:
    from stm_fast.config import MemoryConfig
    from stm_fast.errors import InputError
    from stm_fast.inference.engine import Segmentation, VideoSegmenter
    from stm_fast.network import (
        STM,
        load,
        load_checkpoint,
        save_checkpoint,
        stm_lite0,
        stm_lite2,
        stm_resnet18,
        stm_resnet18_half,
        stm_resnet50,
    )
    from stm_fast.ops import MemoryRead, kernelized_memory_read, memory_read, merge_reads, read_rows
    from stm_fast.ops.adapters.live import Adapted, adapt
    from stm_fast.runs.bulk import BulkResult, bulk
    from stm_fast.runs.lazy import segment
    from stm_fast.runs.video import InterruptedRun, segment_video
    from stm_fast.versions import __version__
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "stm_fast.config": ("MemoryConfig",),
            "stm_fast.errors": ("InputError",),
            "stm_fast.inference.engine": ("Segmentation", "VideoSegmenter"),
            "stm_fast.network": (
                "STM",
                "load",
                "load_checkpoint",
                "save_checkpoint",
                "stm_lite0",
                "stm_lite2",
                "stm_resnet18",
                "stm_resnet18_half",
                "stm_resnet50",
            ),
            "stm_fast.ops": ("MemoryRead", "kernelized_memory_read", "memory_read", "merge_reads", "read_rows"),
            "stm_fast.ops.adapters.live": ("Adapted", "adapt"),
            "stm_fast.runs.bulk": ("BulkResult", "bulk"),
            "stm_fast.runs.lazy": ("segment",),
            "stm_fast.runs.video": ("InterruptedRun", "segment_video"),
            "stm_fast.versions": ("__version__",),
        },
    )

__all__ = [
    "STM",
    "Adapted",
    "BulkResult",
    "InputError",
    "InterruptedRun",
    "MemoryConfig",
    "MemoryRead",
    "Segmentation",
    "VideoSegmenter",
    "__version__",
    "adapt",
    "bulk",
    "kernelized_memory_read",
    "load",
    "load_checkpoint",
    "memory_read",
    "merge_reads",
    "read_rows",
    "save_checkpoint",
    "segment",
    "segment_video",
    "stm_lite0",
    "stm_lite2",
    "stm_resnet18",
    "stm_resnet18_half",
    "stm_resnet50",
]
