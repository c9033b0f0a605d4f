"""The memory read: one operator, several backends."""

from stm_fast.ops.functional import memory_read, merge_reads
from stm_fast.ops.layers import MemoryRead

__all__ = ["MemoryRead", "memory_read", "merge_reads"]
