"""What is remembered of a video."""

from stm_fast.memory.bank import MemoryBank
from stm_fast.memory.policy import frames_that_stay, stays

__all__ = ["MemoryBank", "frames_that_stay", "stays"]
