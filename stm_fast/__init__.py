"""Space-Time Memory networks for video object segmentation, around one fused memory read."""

from importlib.metadata import version

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference import Segmentation, VideoSegmenter, segment_video
from stm_fast.network import STM, load_checkpoint, save_checkpoint, stm_resnet18, stm_resnet18_half, stm_resnet50
from stm_fast.ops import MemoryRead, memory_read, merge_reads

__version__ = version("stm_fast")
__all__ = [
    "STM",
    "InputError",
    "MemoryConfig",
    "MemoryRead",
    "Segmentation",
    "VideoSegmenter",
    "__version__",
    "load_checkpoint",
    "memory_read",
    "merge_reads",
    "save_checkpoint",
    "segment_video",
    "stm_resnet18",
    "stm_resnet18_half",
    "stm_resnet50",
]
