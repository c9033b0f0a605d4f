"""What is remembered of a video."""

from stm_fast.memory.bank import MemoryBank
from stm_fast.memory.policy import stays

__all__ = ["MemoryBank", "stays"]
