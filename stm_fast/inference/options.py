"""What masks depend on besides the input and the network, and how large the network sees a frame."""

from dataclasses import asdict, dataclass, field
from typing import Any

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError, option


@dataclass(frozen=True)
class RunOptions:
    """How a video is segmented.

    Args:
        memory, max_size, min_size, backend: as in :class:`stm_fast.inference.VideoSegmenter`.
        scales: of the sides of the frame, whose masks are averaged; a scale counts before `max_size` and `min_size` do.
        flip: every scale mirrored too.
    """

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    max_size: int | None = None
    min_size: int = 1
    backend: str = "auto"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def described(self) -> dict[str, Any]:
        """As plain values, for the record of a run."""
        return asdict(self) | {"memory": self.memory.described()}


def check_sizes(max_size: int | None, min_size: int) -> None:
    """Raises InputError for a `max_size` below 16, a `min_size` below 1, or one above `max_size`."""
    if max_size is not None and max_size < 16:
        raise InputError(f"{option('max_size')}: found {max_size}, expected at least 16")
    if min_size < 1 or (max_size is not None and min_size > max_size):
        expected = "at least 1" if max_size is None else f"1 to {option('max_size')}, {max_size}"
        raise InputError(f"{option('min_size')}: found {min_size}, expected {expected}")


def network_size(size: tuple[int, ...], max_size: int | None, min_size: int) -> tuple[int, ...]:
    """Height and width of a frame as the network sees it: the shorter side is `min_size` to `max_size`."""
    shorter = min(size)
    wanted = max(min_size, shorter if max_size is None else min(shorter, max_size))
    return tuple(round(side * wanted / shorter) for side in size)
