"""Which frames stay in the memory, and which one is evicted when it is full."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from stm_fast.config import Evict, MemoryConfig


@dataclass
class Slot:
    """A frame in the memory of one object, or prototypes of frames, which are never evicted like a frame."""

    frame: int  # its number in the video; meaningless for prototypes
    permanent: bool  # never evicted: the user gave its mask
    usage: float = 0.0  # softmax weight, summed over the queries of all reads since the frame was added
    reads: int = 0  # the number of those reads
    prototypes: int = 0  # the number of frames of which the slot holds prototypes; 0 if it holds a frame


def _by_age(slots: Sequence[Slot], newcomer: int) -> list[float]:
    return [slot.frame for slot in slots]


def _by_usage(slots: Sequence[Slot], newcomer: int) -> list[float]:
    """The mean softmax weight per read (after XMem, section 3.3)."""
    return [slot.usage / slot.reads if slot.reads else math.inf for slot in slots]


def _by_gap(slots: Sequence[Slot], newcomer: int) -> list[float]:
    """The gap in time that a frame would leave, so that the others stay evenly spread."""
    times = [-math.inf, *sorted(slot.frame for slot in slots), newcomer]
    gaps = {time: after - before for before, time, after in zip(times, times[1:], times[2:], strict=False)}
    return [gaps[slot.frame] for slot in slots]


# score the slots when frame `newcomer` is added to a full memory: the lowest score is evicted
_SCORES: dict[Evict, Callable[[Sequence[Slot], int], list[float]]] = {
    "oldest": _by_age,
    "least_used": _by_usage,
    "even": _by_gap,
}


def victim(
    evict: Evict,
    slots: Sequence[Slot],
    newcomer: int,
    *,
    evicted: Collection[int] = (),
    spared: Collection[int] = (),
) -> int | None:
    """The slot to evict for frame `newcomer`; of equal scores the older frame; None if no frame can be evicted.

    Args:
        slots: of an object.
        evicted: indices of slots that count as evicted already.
        spared: indices of slots that count as permanent.
    """
    frames = [index for index, slot in enumerate(slots) if not slot.prototypes and index not in evicted]
    scores = dict(zip(frames, _SCORES[evict]([slots[index] for index in frames], newcomer), strict=True))
    evictable = [index for index in frames if not slots[index].permanent and index not in spared]
    return min(evictable, key=lambda index: (scores[index], slots[index].frame), default=None)


def victims(evict: Evict, slots: Sequence[Slot], newcomer: int, count: int) -> list[int]:
    """Up to `count` slots that would be evicted one after another, sparing the newest frame."""
    frames = [index for index, slot in enumerate(slots) if not slot.prototypes]
    newest = max(frames, key=lambda index: slots[index].frame, default=-1)
    chosen: list[int] = []
    for _ in range(count):
        found = victim(evict, slots, newcomer, evicted=chosen, spared=[newest])
        if found is None:
            break
        chosen.append(found)
    return chosen


def stays(config: MemoryConfig, frame: int, given: bool) -> bool:
    """Whether a frame stays in memory until it is evicted: frames with a given mask, and every n-th, 0 included.

    With ``every=None`` and the previous frame this is "first and previous" (STM, table 5).
    """
    return given or (config.every is not None and frame % config.every == 0)


def frames_that_stay(config: MemoryConfig, frame_count: int, given: Collection[int], both: bool = False) -> int:
    """The largest number of a video's frames in memory at a time.

    Args:
        both: the frames before the first given mask are segmented backwards, with a memory of their own; otherwise they
            do not count.
    """
    first = min(given)
    count = sum(stays(config, frame, frame in given) for frame in range(first, frame_count))
    if both:
        count = max(count, len(given) + sum(stays(config, frame, False) for frame in range(first)))
    return count if config.max_frames is None else min(count, config.max_frames)


def with_known_size(
    config: MemoryConfig, frame_count: int | None, given: Collection[int], both: bool = False
) -> MemoryConfig:
    """The configuration with the number of frames that will stay, if the video's number of frames is known."""
    if config.frames is not None or frame_count is None:
        return config
    return replace(config, frames=frames_that_stay(config, frame_count, given, both))
