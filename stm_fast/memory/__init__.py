"""The memory bank: what is kept of a video, in which format, and where."""

from stm_fast.memory.bank import MemoryBank
from stm_fast.memory.policy import frames_that_stay, stays, with_known_size
from stm_fast.memory.sharded import RankLostError, Shard

__all__ = ["MemoryBank", "RankLostError", "Shard", "frames_that_stay", "stays", "with_known_size"]
