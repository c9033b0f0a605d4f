"""Clips out of `SyntheticClip`, for training."""

from functools import lru_cache

import numpy as np
from PIL import Image

from stm_fast.data.raw import Shot
from stm_fast.data.synthetic import FIRST_TRAINING_SEED, SyntheticClip, SyntheticFrame
from stm_fast.data.videos import draw_times
from stm_fast.errors import InputError

_OBJECTS = (1, 2, 3)
_SPAN = 100  # frames of which a clip is drawn
_KEPT = 32


class SyntheticSource:
    """Procedural clips of one to three objects.

    Args:
        length: how many different clips there are.
        height, width: their size in pixels.

    Raises InputError for a length below 1.
    """

    moving = True

    def __init__(self, length: int, height: int = 144, width: int = 192) -> None:
        if length < 1:
            raise InputError(f"length: {length} synthetic clips, expected at least 1")
        self._length, self._height, self._width = length, height, width

    def __len__(self) -> int:
        return self._length

    def draw(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[Shot]:
        """Frames of clip `index`, as of a video of 100 frames."""
        seed = FIRST_TRAINING_SEED + index
        clip = _open_clip(seed, self._height, self._width)
        times = draw_times(_SPAN, frames, max_skip, generator)
        return [_shot(clip[time], f"synthetic:{seed}:{time}") for time in times]


# a clip takes longer to set up than to render
@lru_cache(maxsize=_KEPT)
def _open_clip(seed: int, height: int, width: int) -> SyntheticClip:
    objects = _OBJECTS[seed % len(_OBJECTS)]
    return SyntheticClip(seed, frames=_SPAN, height=height, width=width, objects=objects)


def _shot(frame: SyntheticFrame, name: str) -> Shot:
    return Shot(name, frame.ids, lambda shrink: np.array(Image.fromarray(frame.image).reduce(shrink)))
