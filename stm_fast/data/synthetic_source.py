"""Clips of `SyntheticClip`, for training."""

from functools import lru_cache

import numpy as np
from PIL import Image

from stm_fast.data.occlusion import draw_occlusion
from stm_fast.data.source import Frame
from stm_fast.data.synthetic import FIRST_TRAINING_SEED, SyntheticClip, SyntheticFrame
from stm_fast.data.videos import draw_times
from stm_fast.errors import InputError

_KEPT = 32


class SyntheticSource:
    """Synthetic clips.

    Args:
        length: how many different clips there are.
        height, width: their size in pixels.
        frames: how long they are.
        objects: how many objects they have; clips take these numbers in turn.
        object_size: as in `SyntheticClip`.
        hidden: share of the draws of 3 frames and more in which an object is hidden between the first and the last.
            They span about as much time as the longest others; `max_skip` does not limit single gaps.

    Raises InputError for a length below 1, no number of objects, a share outside [0, 1], and numbers that
    `SyntheticClip` refuses.
    """

    moving = True

    def __init__(
        self,
        length: int,
        height: int = 144,
        width: int = 192,
        frames: int = 100,
        objects: tuple[int, ...] = (1, 2, 3),
        object_size: tuple[float, float] = (0.16, 0.24),
        hidden: float = 0.0,
    ) -> None:
        if length < 1:
            raise InputError(f"length: {length} synthetic clips, expected at least 1")
        if not objects:
            raise InputError("objects: no number of objects of synthetic clips, expected one at least")
        if not 0 <= hidden <= 1:
            raise InputError(f"hidden: {hidden}, expected a share from 0 to 1")
        self._length, self._height, self._width = length, height, width
        self._frames, self._objects = frames, objects
        self._object_size, self._hidden = object_size, hidden

    def __len__(self) -> int:
        return self._length

    def check_length(self, frames: int) -> None:
        """Raises InputError where clips are shorter than that."""
        if self._frames < frames:
            raise InputError(f"frames: synthetic clips of {self._frames}, expected at least {frames}")

    def clip(self, index: int) -> SyntheticClip:
        """Clip `index`; those from `length` on are never trained on."""
        seed = FIRST_TRAINING_SEED + index
        objects = self._objects[seed % len(self._objects)]
        try:
            return _open_clip(seed, self._frames, self._height, self._width, objects, self._object_size)
        except ValueError as error:
            raise InputError(f"synthetic clip {index}: {error}") from error

    def length(self, index: int) -> int:
        """Frames of every clip."""
        return self._frames

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Times as in a video, or such that an object is hidden in between."""
        self.check_length(frames)
        times = None
        if frames >= 3 and self._hidden and generator.random() < self._hidden:
            times = draw_occlusion(self.clip(index), frames, (max_skip + 1) * (frames - 1) // 2, generator)
        return draw_times(self._frames, frames, max_skip, generator) if times is None else times

    def frame(self, index: int, time: int) -> Frame:
        """A frame of clip `index`, named by its seed."""
        return _frame(self.clip(index)[time], f"synthetic:{FIRST_TRAINING_SEED + index}:{time}")


# a clip takes longer to set up than to render
@lru_cache(maxsize=_KEPT)
def _open_clip(
    seed: int, frames: int, height: int, width: int, objects: int, object_size: tuple[float, float]
) -> SyntheticClip:
    return SyntheticClip(seed, frames=frames, height=height, width=width, objects=objects, object_size=object_size)


def _frame(frame: SyntheticFrame, name: str) -> Frame:
    return Frame(name, frame.ids, lambda shrink: np.array(Image.fromarray(frame.image).reduce(shrink)))
