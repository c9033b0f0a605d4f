"""Space-Time Memory networks for video object segmentation, around one fused memory read."""

from importlib.metadata import version

from stm_fast.ops import MemoryRead, memory_read, merge_reads

__version__ = version("stm_fast")
__all__ = ["MemoryRead", "__version__", "memory_read", "merge_reads"]
