"""Times of a synthetic clip between which an object is hidden, which ordinary draws almost never give."""

import numpy as np
import numpy.typing as npt

from stm_fast.data.synthetic import SyntheticClip

# frames between two looks at a clip
_STRIDE = 3
# objects that are hidden nearly as well as the best hidden one are drawn too
_NEARLY = 0.8
# share of its largest area from which an object counts as visible
_VISIBLE = 0.3

Areas = npt.NDArray[np.float64]


def draw_occlusion(clip: SyntheticClip, frames: int, reach: int, generator: np.random.Generator) -> list[int] | None:
    """Increasing times of `frames` frames: an object is visible in the first and the last, and hidden in between.

    Args:
        clip: of some objects.
        frames: how many, at least 3.
        reach: most frames between the first or the last and the one that hides the object best.
        generator: of everything random.

    Returns:
        The times, or None where nothing is ever hidden, or where the clip is too short.
    """
    looks = np.arange(0, clip.frames, _STRIDE)
    areas = np.array([_areas(clip, int(time)) for time in looks])  # [looks, O]
    areas /= np.maximum(areas.max(0, initial=0), 1)
    window = max(reach // _STRIDE, 1)
    best = [_best_hidden(areas[:, index], window) for index in range(clip.objects)]
    losses = np.array([loss for loss, _ in best])
    if not losses.size or losses.max() <= 0:
        return None
    index = generator.choice(np.flatnonzero(losses >= _NEARLY * losses.max()))
    area, hidden = areas[:, index], best[index][1]
    first = _draw_seen(area, range(max(hidden - window, 0), hidden), generator)
    last = _draw_seen(area, range(hidden + 1, min(hidden + window + 1, len(looks))), generator)
    between = np.setdiff1d(np.arange(looks[first] + 1, looks[last]), looks[hidden])
    if len(between) < frames - 3:
        return None
    rest = generator.choice(between, frames - 3, replace=False)
    return sorted([int(looks[first]), int(looks[hidden]), int(looks[last]), *rest.tolist()])


def _areas(clip: SyntheticClip, time: int) -> Areas:
    """Pixels of every object [O]."""
    return np.bincount(clip.ids(time).ravel(), minlength=clip.objects + 1)[1:].astype(np.float64)


def _best_hidden(area: Areas, window: int) -> tuple[float, int]:
    """The share of its area [looks] that an object loses and regains within a window, and when it has lost most."""
    losses = [0.0]
    for time in range(1, len(area) - 1):
        seen = min(area[max(time - window, 0) : time].max(), area[time + 1 : time + window + 1].max())
        losses.append(float(1 - area[time] / seen) if seen >= _VISIBLE else 0.0)
    return max(losses), int(np.argmax(losses))


def _draw_seen(area: Areas, looks: range, generator: np.random.Generator) -> int:
    """A look that shows nearly as much of the object as any."""
    seen = area[looks]
    return looks[int(generator.choice(np.flatnonzero(seen >= _NEARLY * seen.max())))]
