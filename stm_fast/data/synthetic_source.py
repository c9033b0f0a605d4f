"""A source of synthetic training clips."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.data.source import Frame
from stm_fast.data.synthetic import FIRST_TRAINING_SEED, SyntheticClip
from stm_fast.data.videos import draw_times
from stm_fast.errors import InputError

# a clip takes longer to set up than to render
_open_clip = lru_cache(maxsize=32)(SyntheticClip)
# frames between two masks of a clip that are searched for occlusions
_STRIDE = 3
# occlusions and views of at least this quality, relative to the best, are drawn too
_NEAR_BEST = 0.8
# an object counts as visible from this share of its largest area
_VISIBLE = 0.3

Areas = npt.NDArray[np.float64]


class SyntheticSource:
    """Clips of `SyntheticClip`.

    Args:
        length: number of clips.
        height, width: size in pixels.
        frames: frames per clip.
        objects: numbers of objects, which clips use in turn.
        object_size: as in `SyntheticClip`.
        hidden: share of the draws of 3 or more frames in which an object is hidden between the first and the last.
            They span at most about as much time as other draws; `max_skip` does not limit single gaps.

    Raises:
        InputError: `SyntheticClip` refuses the numbers; raised when a clip is drawn.
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
        self._length, self._frames, self._objects, self._hidden = length, frames, objects, hidden
        self._settings = {"frames": frames, "height": height, "width": width, "object_size": object_size}

    def __len__(self) -> int:
        return self._length

    def check_length(self, frames: int) -> None:
        """Raises InputError if clips are shorter."""
        if self._frames < frames:
            raise InputError(f"frames: synthetic clips of {self._frames}, expected at least {frames}")

    def clip(self, index: int) -> SyntheticClip:
        """Clip `index`. From `length` on, clips are never used for training. Raises InputError."""
        seed = FIRST_TRAINING_SEED + index
        objects = self._objects[seed % len(self._objects)]
        try:
            return _open_clip(seed, objects=objects, **self._settings)
        except ValueError as error:
            raise InputError(f"synthetic clip {index}: {error}") from error

    def length(self, index: int) -> int:
        """Frames per clip."""
        return self._frames

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Times as in a video, or times between which an object is hidden."""
        self.check_length(frames)
        times = None
        if frames >= 3 and self._hidden and generator.random() < self._hidden:
            times = draw_occlusion(self.clip(index), frames, (max_skip + 1) * (frames - 1) // 2, generator)
        return draw_times(self._frames, frames, max_skip, generator) if times is None else times

    def frame(self, index: int, time: int) -> Frame:
        """A frame of clip `index`, named by its seed."""
        name, frame = f"synthetic:{FIRST_TRAINING_SEED + index}:{time}", self.clip(index)[time]
        return Frame(name, frame.ids, lambda shrink: np.array(Image.fromarray(frame.image).reduce(shrink)))


def draw_occlusion(clip: SyntheticClip, frames: int, reach: int, generator: np.random.Generator) -> list[int] | None:
    """Increasing times of `frames` frames: an object is visible in the first and the last, and hidden in between.

    Args:
        frames: number of times, at least 3.
        reach: the most frames from the first or the last to the one in which the object is hidden best.

    Returns:
        The times; None if no object is ever hidden, or the clip is too short.
    """
    sampled = np.arange(0, clip.frames, _STRIDE)
    areas = np.array([_areas(clip, int(time)) for time in sampled])  # [sampled, O]
    areas /= np.maximum(areas.max(0, initial=0), 1)
    window = max(reach // _STRIDE, 1)
    best = [_best_occlusion(areas[:, index], window) for index in range(clip.objects)]
    losses = np.array([loss for loss, _ in best])
    if not losses.size or losses.max() <= 0:
        return None
    index = generator.choice(np.flatnonzero(losses >= _NEAR_BEST * losses.max()))
    area, hidden = areas[:, index], best[index][1]
    first = _draw_visible(area, range(max(hidden - window, 0), hidden), generator)
    last = _draw_visible(area, range(hidden + 1, min(hidden + window + 1, len(sampled))), generator)
    between = np.setdiff1d(np.arange(sampled[first] + 1, sampled[last]), sampled[hidden])
    if len(between) < frames - 3:
        return None
    rest = generator.choice(between, frames - 3, replace=False)
    return sorted([int(sampled[first]), int(sampled[hidden]), int(sampled[last]), *rest.tolist()])


def _areas(clip: SyntheticClip, time: int) -> Areas:
    """Pixels of each object, [O]."""
    return np.bincount(clip.ids(time).ravel(), minlength=clip.objects + 1)[1:].astype(np.float64)


def _best_occlusion(area: Areas, window: int) -> tuple[float, int]:
    """The largest share of its area [S] that an object loses and regains within a window, and when; S sampled times."""
    losses = [0.0]
    for time in range(1, len(area) - 1):
        seen = min(area[max(time - window, 0) : time].max(), area[time + 1 : time + window + 1].max())
        losses.append(float(1 - area[time] / seen) if seen >= _VISIBLE else 0.0)
    return max(losses), int(np.argmax(losses))


def _draw_visible(area: Areas, sampled: range, generator: np.random.Generator) -> int:
    """A sampled time that shows nearly as much of the object as the best one."""
    seen = area[sampled]
    return sampled[int(generator.choice(np.flatnonzero(seen >= _NEAR_BEST * seen.max())))]
