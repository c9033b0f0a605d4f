"""Which frames stay in the memory."""

from stm_fast.config import MemoryConfig


def stays(config: MemoryConfig, frame: int, given: bool) -> bool:
    """Whether a frame stays: every N-th, the first (0 is a multiple of N), and where the user gave a mask."""
    return given or frame % config.every == 0
