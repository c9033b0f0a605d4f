"""What a user can choose, as frozen dataclasses."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Evict = Literal["oldest", "least_used", "even"]
StorageName = Literal["model", "float32", "bfloat16", "float16", "int8", "fp8"]
Place = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class MemoryConfig:
    """What the memory keeps of a video, and where (STM section 3.4: every fifth frame, and the previous one).

    Every frame whose mask the user gave stays as well, and is never evicted. The defaults are what was published:
    nothing is evicted, rows lie on the model's device in its dtype.

    Args:
        every: every `every`-th frame stays; None: none but those with a given mask ("first and previous").
        previous: the previous frame is read too, for one step, where it does not stay.
        redetect: an object that has lost nearly all of its pixels is not remembered until it is found again, and is
            looked for in the whole frame. For networks whose keys hold places (a shared trunk); with others, and
            without it, every frame is remembered, as published.
        frames: how many frames will stay, where that is known: the bank is made that large at once.
        max_frames: at most so many frames stay, of each object; the previous one, for its step, is not counted.
        max_bytes: at most so many bytes for the rows of all objects, the previous frame's included.
        evict: which frame makes room where a cap is reached: the "oldest", the "least_used" by the reads since it
            came, or the one that leaves the others spread most evenly over time ("even").
        storage: what a row is kept as: the "model"'s dtype, another float, or scaled "int8" or "fp8" (e4m3).
        place: where rows lie: the model's "device", pages in "host" memory (pinned, for a GPU), or on "disk".
        folder: where the file of a bank on disk lies. It has no name, so nothing is left of it, whatever happens.
        page_bytes: size of a page on the host or on disk, of one object, in bytes of the model's dtype; two pages of
            every object are on the device at a time.
        graph: replays reads that repeat (a full memory's) from CUDA graphs, which keep the memory of two reads. For
            floats on a GPU, read without gradients.
    """

    every: int | None = 5
    previous: bool = True
    redetect: bool = True
    frames: int | None = None
    max_frames: int | None = None
    max_bytes: int | None = None
    evict: Evict = "oldest"
    storage: StorageName = "model"
    place: Place = "device"
    folder: Path | None = None
    page_bytes: int = 2**23
    graph: bool = False

    def described(self) -> dict[str, Any]:
        """What masks depend on, as plain values: not where a bank's file lies, nor how its reads are launched."""
        plain = asdict(self) | {"folder": None}
        del plain["graph"]
        return plain

    def __post_init__(self) -> None:
        for name in ("every", "frames", "max_frames", "max_bytes", "page_bytes"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"MemoryConfig.{name}: found {number}, expected at least 1")
        for name, choices in (("evict", Evict), ("storage", StorageName), ("place", Place)):
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ValueError(f"MemoryConfig.{name}: found {getattr(self, name)!r}, expected one of {expected}")
        if (self.place == "disk") != (self.folder is not None):
            raise ValueError(
                f"MemoryConfig.folder: found {self.folder} with place {self.place!r}, expected one with 'disk' only"
            )

    @property
    def capped(self) -> bool:
        """Whether anything is ever evicted."""
        return self.max_frames is not None or self.max_bytes is not None
