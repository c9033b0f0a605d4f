"""What a run is asked for: what its masks depend on, and what becomes of its results."""

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from stm_fast.choices import Overlay
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError


@dataclass(frozen=True)
class RunOptions:
    """What the masks of a run depend on, besides its input and its network.

    Args:
        memory, max_size, min_size, backend: as in :class:`stm_fast.inference.VideoSegmenter`.
        scales, flip: as in :class:`stm_fast.inference.augmentation.AugmentedSegmenter`.
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


@dataclass(frozen=True)
class OutputOptions:
    """What `segment_video` does with its output folder; its docstring explains each.

    Raises InputError where there is no such overlay.
    """

    overlay: Overlay = "video"
    overwrite: bool = False
    resume: bool = False
    checkpoint_seconds: float = 60.0
    leave_record: bool = False

    def __post_init__(self) -> None:
        if self.overlay not in get_args(Overlay):
            raise InputError(f"overlay: found {self.overlay!r}, expected one of {', '.join(get_args(Overlay))}")
