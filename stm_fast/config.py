"""What a user can choose, as frozen dataclasses."""

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from stm_fast.arguments import flag, integer, shown

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

    Raises:
        ValueError: numbers below 1 or beyond int64, unknown names, a `folder` without "disk" or the other way round.
        TypeError: numbers that are no integers, flags that are neither True nor False, a folder that is no path.
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
            self._check_number(name)
        for name in ("previous", "redetect", "graph"):
            self._set(name, flag(getattr(self, name), f"MemoryConfig.{name}"))
        for name, choices in (("evict", Evict), ("storage", StorageName), ("place", Place)):
            found = getattr(self, name)
            if not isinstance(found, str) or found not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ValueError(f"MemoryConfig.{name}: found {shown(found)}, expected one of {expected}")
        if self.folder is not None:
            if not isinstance(self.folder, str | PathLike):
                raise TypeError(f"MemoryConfig.folder: found {type(self.folder).__name__}, expected a path or None")
            self._set("folder", Path(self.folder))
        if (self.place == "disk") != (self.folder is not None):
            raise ValueError(
                f"MemoryConfig.folder: found {self.folder} with place {self.place!r}, expected one with 'disk' only"
            )

    def _check_number(self, name: str) -> None:
        found = getattr(self, name)
        if found is None and name != "page_bytes":
            return
        number = integer(found, f"MemoryConfig.{name}", "an integer" if name == "page_bytes" else "an integer or None")
        if number < 1:
            raise ValueError(f"MemoryConfig.{name}: found {number}, expected at least 1")
        if number >= 2**63:
            raise ValueError(f"MemoryConfig.{name}: found {number:.3g}, expected less than 2**63")
        self._set(name, number)

    def _set(self, name: str, value: object) -> None:
        """Puts a value in its plain form in place of the one that was given, before anyone saw that."""
        object.__setattr__(self, name, value)

    @property
    def capped(self) -> bool:
        """Whether anything is ever evicted."""
        return self.max_frames is not None or self.max_bytes is not None
