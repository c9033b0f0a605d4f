"""What a whole frame has to do, and its name."""

import re
from dataclasses import dataclass
from pathlib import Path

from stm_fast.errors import InputError

SIZES = {"64p": (64, 112), "240p": (240, 428), "480p": (480, 854), "1080p": (1080, 1920)}


@dataclass(frozen=True)
class SystemWorkload:
    """What a frame has to do."""

    size: str = "480p"
    objects: int = 1
    memory_frames: int = 10  # that stay; the previous frame is read as well
    backbone: str = "resnet50"
    weights: str | None = None  # a checkpoint, whose backbone then counts; None: drawn from a seed

    def __str__(self) -> str:
        network = self.backbone if self.weights is None else Path(self.weights).name
        return f"{self.name}, {network}"

    @property
    def name(self) -> str:
        """What `parse_workload` takes."""
        return f"{self.size}-T{self.memory_frames}-O{self.objects}"


def parse_workload(text: str, weights: str | None = None) -> SystemWorkload:
    """The workload of a name such as 480p-T10-O3. Raises InputError for any other text."""
    match = re.fullmatch(r"([0-9]{2,4}p)-T([1-9][0-9]{0,5})-O([1-9]|1[0-9]|20)", text)
    if match is None or match[1] not in SIZES:
        raise InputError(f"shape: found {text[:40]!r}, expected for example 480p-T10-O3 ({', '.join(SIZES)})")
    return SystemWorkload(match[1], objects=int(match[3]), memory_frames=int(match[2]), weights=weights)
