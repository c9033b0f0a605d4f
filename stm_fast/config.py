"""The configuration of the memory."""

from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from stm_fast.arguments import flag, integer, shown

Evict = Literal["oldest", "least_used", "even"]
StorageName = Literal["model", "float32", "bfloat16", "float16", "int8", "fp8"]
Place = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class MemoryConfig:
    """What the memory keeps of a video, and where (STM section 3.4: every fifth frame, and the previous one).

    Frames whose mask the user gave are kept as well and never evicted. The defaults are those published: nothing is
    evicted, and rows are on the model's device in its dtype.

    Args:
        every: keep every `every`-th frame; None: only those with a given mask ("first and previous").
        previous: also read the previous frame, for one step, if it is not kept.
        redetect: an object that has lost nearly all of its pixels is not memorized until it is found again, and is
            searched for in the whole frame. For networks whose keys contain positions (a shared trunk); with others,
            and without it, every frame is memorized, as published.
        frames: how many frames will be kept, if known: the bank is allocated for them at once.
        max_frames: keep at most this many frames per object, not counting the previous one.
        max_bytes: keep at most this many bytes of rows of all objects, including the previous frame.
        evict: which frame is evicted when full: the "oldest"; the "least_used" by reads since it was memorized; or,
            with "even", the one whose removal leaves the others spread most evenly over time.
        consolidate: of the frames that `max_frames` or `max_bytes` allows, this many per object hold prototypes: each
            frame that is evicted leaves there some of its most used rows (XMem, section 3.3), in place of the least
            used ones. Frames with given masks take precedence over prototypes.
        storage: format of the rows: the "model"'s dtype, another float dtype, or scaled "int8" or "fp8" (e4m3).
        place: where the rows are stored: on the model's "device", in pages in "host" memory (pinned if the device is a
            GPU), or on "disk".
        folder: for the file of a bank on disk. The file is unlinked when it is created, so nothing is left behind.
        page_bytes: size of a page on the host or on disk, in bytes of the model's dtype. A page belongs to one object;
            two pages per object are on the device at a time.
        graph: replay reads of a full memory from CUDA graphs, which keep the buffers of two reads. Only for
            floating-point rows on a GPU, without gradients.

    Raises:
        ValueError: numbers below 1 or beyond int64, unknown names, a `folder` without "disk" or vice versa, prototypes
            without a cap or without room for two frames.
        TypeError: numbers that are not integers, flags that are not booleans, a folder that is not a path.
    """

    every: int | None = 5
    previous: bool = True
    redetect: bool = True
    frames: int | None = None
    max_frames: int | None = None
    max_bytes: int | None = None
    evict: Evict = "oldest"
    consolidate: int | None = None
    storage: StorageName = "model"
    place: Place = "device"
    folder: Path | None = None
    page_bytes: int = 2**23
    graph: bool = False

    def described(self) -> dict[str, Any]:
        """The options that affect masks, as plain values: all but the folder and `graph`."""
        plain = asdict(self) | {"folder": None}
        del plain["graph"]
        return plain

    def __post_init__(self) -> None:
        for field in fields(self):
            # normalizes the types of arguments
            object.__setattr__(self, field.name, _checked(field.type, getattr(self, field.name), field.name))
        if (self.place == "disk") != (self.folder is not None):
            raise ValueError(
                f"MemoryConfig.folder: found {self.folder} with place {self.place!r}, expected a folder if and only if "
                "the place is 'disk'"
            )
        self._check_consolidate()

    @property
    def capped(self) -> bool:
        """Whether the memory is limited, so that frames are evicted."""
        return self.max_frames is not None or self.max_bytes is not None

    def _check_consolidate(self) -> None:
        found, most = f"MemoryConfig.consolidate: found {self.consolidate}", self.max_frames
        if self.consolidate is None:
            return
        if not self.capped:
            raise ValueError(f"{found} without max_frames or max_bytes, expected one of them")
        if most is not None and self.consolidate > most - 2:
            raise ValueError(f"{found} with max_frames {most}, expected at least 2 fewer")


def _checked(kind: Any, found: Any, field: str) -> Any:
    """The value of a field, converted to its type. Raises as `MemoryConfig` does."""
    name = f"MemoryConfig.{field}"
    if kind is bool:
        return flag(found, name)
    if get_origin(kind) is Literal:
        if not isinstance(found, str) or found not in get_args(kind):
            raise ValueError(f"{name}: found {shown(found)}, expected one of {', '.join(get_args(kind))}")
        return found
    optional = type(None) in get_args(kind)
    if found is None and optional:
        return None
    if Path in get_args(kind):
        if not isinstance(found, str | PathLike):
            raise TypeError(f"{name}: found {type(found).__name__}, expected a path or None")
        return Path(found)
    number = integer(found, name, "an integer or None" if optional else "an integer")
    if number < 1:
        raise ValueError(f"{name}: found {number}, expected at least 1")
    if number >= 2**63:
        raise ValueError(f"{name}: found {number:.3g}, expected less than 2**63")
    return number
