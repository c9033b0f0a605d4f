"""The memory read: one operator, several backends."""

from stm_fast.ops.functional import memory_read, merge_reads
from stm_fast.ops.kept_rows import read_rows
from stm_fast.ops.kernelized import kernelized_memory_read
from stm_fast.ops.layers import MemoryRead
from stm_fast.ops.quantized import QuantizedMemory, memory_read_quantized, quantize_memory

__all__ = [
    "MemoryRead",
    "QuantizedMemory",
    "kernelized_memory_read",
    "memory_read",
    "memory_read_quantized",
    "merge_reads",
    "quantize_memory",
    "read_rows",
]
