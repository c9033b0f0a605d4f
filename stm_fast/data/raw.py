"""What a source of training clips hands over: shots, a mask each and a picture that is decoded when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture and its mask.

    Attributes:
        name: where it came from: the file of the picture, or the seed it was drawn from.
        ids: uint8 [H, W], object ids, 0 is background.
        read: decodes the picture, RGB uint8 [H / s, W / s, 3], rounded up: a pixel for a block of `s` pixels a side,
            where the argument `s` is 1, 2, 4 or 8. Raises InputError.
    """

    name: str
    ids: Bytes
    read: Callable[[int], Bytes]


class ClipSource(Protocol):
    """A place clips come from: videos, or stills that are to be set in motion."""

    @property
    def moving(self) -> bool:
        """Whether the shots of a clip differ: a video."""

    def __len__(self) -> int:
        """How many stills or sequences there are."""

    def check_length(self, frames: int) -> None:
        """Raises InputError where a clip cannot have so many frames."""

    def length(self, index: int) -> int:
        """How many shots still or sequence `index` has; a still has one."""

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """When the shots of a clip of still or sequence `index` are taken, in order; a still's are all at 0.

        Args:
            frames: number of shots T.
            max_skip: most frames left out between two shots of a video, 0 takes neighbours.
            generator: decides which frames these are.

        Raises InputError for a sequence that is too short.
        """

    def shot(self, index: int, time: int) -> Shot:
        """One shot. Raises InputError for files that are missing, broken or do not fit together."""


def draw_shots(
    source: ClipSource, index: int, frames: int, max_skip: int, generator: np.random.Generator
) -> list[Shot]:
    """A clip at the times that the source draws; a still is one shot T times over. Raises InputError."""
    times = source.times(index, frames, max_skip, generator)
    shots = {time: source.shot(index, time) for time in dict.fromkeys(times)}
    return [shots[time] for time in times]
