"""The options that masks depend on, and the size at which the network sees a frame."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError, option


@dataclass(frozen=True)
class RunOptions:
    """How to segment a video.

    Args:
        memory, max_size, min_size, backend: as in :class:`stm_fast.VideoSegmenter`.
        scales: frame scales whose predictions are averaged; applied before `max_size` and `min_size`.
        flip: also average over mirrored frames.
    """

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    max_size: int | None = None
    min_size: int | None = None
    backend: str = "auto"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def for_weights(self, min_size: int) -> Self:
        """With the `min_size` that applies to weights with one of their own, see `smallest_side`."""
        return replace(self, min_size=smallest_side(self.min_size, self.max_size, min_size))

    def described(self) -> dict[str, Any]:
        """As plain values, for the record of a run."""
        return asdict(self) | {"memory": self.memory.described()}


def smallest_side(min_size: int | None, max_size: int | None, of_weights: int) -> int:
    """The `min_size` of a run: as requested, otherwise that of the weights, which `max_size` limits."""
    if min_size is not None:
        return min_size
    return of_weights if max_size is None else min(of_weights, max_size)


def check_sizes(max_size: int | None, min_size: int | None) -> None:
    """Raises InputError for a `max_size` below 16, or a `min_size` below 1 or above `max_size`."""
    if max_size is not None and max_size < 16:
        raise InputError(f"{option('max_size')}: found {max_size}, expected at least 16")
    if min_size is not None and (min_size < 1 or (max_size is not None and min_size > max_size)):
        expected = "at least 1" if max_size is None else f"1 to {option('max_size')}, {max_size}"
        raise InputError(f"{option('min_size')}: found {min_size}, expected {expected}")


def network_size(size: tuple[int, ...], max_size: int | None, min_size: int) -> tuple[int, ...]:
    """H, W of a frame as the network sees it: scaled so that the shorter side is `min_size` to `max_size`."""
    shorter = min(size)
    wanted = max(min_size, shorter if max_size is None else min(shorter, max_size))
    return tuple(round(side * wanted / shorter) for side in size)
