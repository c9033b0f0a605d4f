"""The memory read: one operator, several backends."""

from stm_fast.ops.functional import memory_read, merge_reads
from stm_fast.ops.layers import MemoryRead
from stm_fast.ops.quantised import QuantisedMemory, memory_read_quantised, quantise_memory

__all__ = ["MemoryRead", "QuantisedMemory", "memory_read", "memory_read_quantised", "merge_reads", "quantise_memory"]
