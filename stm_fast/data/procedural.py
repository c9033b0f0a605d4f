"""Clips out of `SyntheticClip`, for training."""

from functools import lru_cache

import numpy as np
from PIL import Image

from stm_fast.data.raw import Shot
from stm_fast.data.synthetic import FIRST_TRAINING_SEED, SyntheticClip, SyntheticFrame
from stm_fast.data.videos import draw_times
from stm_fast.errors import InputError

_KEPT = 32


class SyntheticSource:
    """Procedural clips.

    Args:
        length: how many different clips there are.
        height, width: their size in pixels.
        frames: how long they are.
        objects: how many objects they have, one number after the other in turn.

    Raises InputError for a length below 1, no number of objects, and numbers that `SyntheticClip` refuses.
    """

    moving = True

    def __init__(
        self,
        length: int,
        height: int = 144,
        width: int = 192,
        frames: int = 100,
        objects: tuple[int, ...] = (1, 2, 3),
    ) -> None:
        if length < 1:
            raise InputError(f"length: {length} synthetic clips, expected at least 1")
        if not objects:
            raise InputError("objects: no number of objects of synthetic clips, expected one at least")
        self._length, self._height, self._width = length, height, width
        self._frames, self._objects = frames, objects

    def __len__(self) -> int:
        return self._length

    def clip(self, index: int) -> SyntheticClip:
        """Clip `index`; beyond the `length` lie clips that are never drawn from."""
        seed = FIRST_TRAINING_SEED + index
        objects = self._objects[seed % len(self._objects)]
        try:
            return _open_clip(seed, self._frames, self._height, self._width, objects)
        except ValueError as error:
            raise InputError(f"synthetic clip {index}: {error}") from error

    def draw(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[Shot]:
        """Some frames of clip `index`, named by its seed."""
        clip = self.clip(index)
        times = draw_times(self._frames, frames, max_skip, generator)
        return [_shot(clip[time], f"synthetic:{FIRST_TRAINING_SEED + index}:{time}") for time in times]


# a clip takes longer to set up than to render
@lru_cache(maxsize=_KEPT)
def _open_clip(seed: int, frames: int, height: int, width: int, objects: int) -> SyntheticClip:
    return SyntheticClip(seed, frames=frames, height=height, width=width, objects=objects)


def _shot(frame: SyntheticFrame, name: str) -> Shot:
    return Shot(name, frame.ids, lambda shrink: np.array(Image.fromarray(frame.image).reduce(shrink)))
