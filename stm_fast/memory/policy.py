"""Which frames stay in the memory."""

from collections.abc import Collection

from stm_fast.config import MemoryConfig


def stays(config: MemoryConfig, frame: int, given: bool) -> bool:
    """Whether a frame stays: every N-th, the first (0 is a multiple of N), and where the user gave a mask."""
    return given or frame % config.every == 0


def frames_that_stay(config: MemoryConfig, frame_count: int, given: Collection[int]) -> int:
    """How many of a video's frames stay; those before the first given mask hold no object and do not."""
    return sum(stays(config, frame, frame in given) for frame in range(min(given), frame_count))
