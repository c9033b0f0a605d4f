"""What a user can choose, as frozen dataclasses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryConfig:
    """What the memory keeps of a video (STM section 3.4: every fifth frame, and the previous one).

    Frame 0 and every frame whose mask the user gave stay as well.

    Args:
        every: every `every`-th frame stays.
        previous: the previous frame is read too, for one step, where it does not stay.
        frames: how many frames will stay, where that is known: the bank is made that large at once.
    """

    every: int = 5
    previous: bool = True
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"MemoryConfig.every: found {self.every}, expected at least 1")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"MemoryConfig.frames: found {self.frames}, expected at least 1 or None")
