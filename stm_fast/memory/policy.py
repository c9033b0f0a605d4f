"""Which frames stay in the memory, and which one makes room where it is full."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stm_fast.config import MemoryConfig


@dataclass
class Slot:
    """What is known of a frame that stays."""

    frame: int  # its number in the video
    permanent: bool  # never evicted: the user gave its mask
    usage: float = 0.0  # softmax weight that it got, summed over the queries of all reads since it came
    reads: int = 0  # how many reads that was


class Selection(Protocol):
    """Which frames stay."""

    def stays(self, frame: int, given: bool) -> bool: ...


class EveryNth:
    """Every n-th frame, the first included (0 is a multiple of n), and where the user gave a mask."""

    def __init__(self, n: int) -> None:
        self._n = n

    def stays(self, frame: int, given: bool) -> bool:
        return given or frame % self._n == 0


class OnlyGiven:
    """Only frames whose mask the user gave; with the previous frame, "first and previous" (STM, table 5)."""

    def stays(self, frame: int, given: bool) -> bool:
        return given


class Eviction(Protocol):
    """What a frame is worth; the least worth makes room.

    needs_usage: whether reads have to tell how much softmax weight each slot got.
    """

    needs_usage: bool

    def worth(self, slots: Sequence[Slot], newcomer: int) -> list[float]: ...


class Oldest:
    """The longer ago a frame was, the less it is worth."""

    needs_usage = False

    def worth(self, slots: Sequence[Slot], newcomer: int) -> list[float]:
        return [slot.frame for slot in slots]


class LeastUsed:
    """A frame is worth the softmax weight it gets in a read, on average (after XMem, section 3.3)."""

    needs_usage = True

    def worth(self, slots: Sequence[Slot], newcomer: int) -> list[float]:
        return [slot.usage / slot.reads if slot.reads else math.inf for slot in slots]


class Even:
    """A frame is worth the gap in time that it would leave; so the others stay spread evenly."""

    needs_usage = False

    def worth(self, slots: Sequence[Slot], newcomer: int) -> list[float]:
        times = [-math.inf, *sorted(slot.frame for slot in slots), newcomer]
        gaps = {time: after - before for before, time, after in zip(times, times[1:], times[2:], strict=False)}
        return [gaps[slot.frame] for slot in slots]


EVICTIONS: dict[str, type[Eviction]] = {"oldest": Oldest, "least_used": LeastUsed, "even": Even}


def victim(eviction: Eviction, slots: Sequence[Slot], newcomer: int) -> int | None:
    """The slot that makes room for frame `newcomer`; of equals the older frame; None where all are permanent."""
    worth = eviction.worth(slots, newcomer)
    evictable = [index for index, slot in enumerate(slots) if not slot.permanent]
    return min(evictable, key=lambda index: (worth[index], slots[index].frame), default=None)


def selection_of(config: MemoryConfig) -> Selection:
    """The selection that a configuration asks for."""
    return OnlyGiven() if config.every is None else EveryNth(config.every)


def eviction_of(config: MemoryConfig) -> Eviction:
    """The eviction that a configuration asks for."""
    return EVICTIONS[config.evict]()


def stays(config: MemoryConfig, frame: int, given: bool) -> bool:
    """Whether a frame stays, until it is evicted."""
    return selection_of(config).stays(frame, given)


def frames_that_stay(config: MemoryConfig, frame_count: int, given: Collection[int]) -> int:
    """How many of a video's frames stay at most at a time; those before the first given mask hold no object."""
    count = sum(stays(config, frame, frame in given) for frame in range(min(given), frame_count))
    return count if config.max_frames is None else min(count, config.max_frames)


def with_known_size(config: MemoryConfig, frame_count: int | None, given: Collection[int]) -> MemoryConfig:
    """The configuration with the number of frames that will stay, where a video says how many frames it has."""
    if config.frames is not None or frame_count is None:
        return config
    return replace(config, frames=frames_that_stay(config, frame_count, given))
