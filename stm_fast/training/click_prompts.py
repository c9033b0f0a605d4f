"""Random prompts for training: regions around objects, wrong masks, and clicks that correct them, bool [S, S]."""

from importlib import import_module
from typing import Any

import numpy as np

from stm_fast.clicks.prompting import Click
from stm_fast.clicks.user import depths_of, hull_of, line_around, points_of
from stm_fast.training.click_examples import VIEW_SIDE
from stm_fast.video.first_mask import bounds, enclosed
from stm_fast.video.grabcut import Bools, Picture

# of regions: how many are boxes, and how many lines are convex hulls
_BOX, _HULL = 0.3, 0.18
_BOX_SLACK = (-0.02, 0.1)  # of the box's sides
_MARGINS, _SIMPLIFIED, _TREMBLING = (2.0, 18.0), (0.2, 0.6), 0.15  # of a line, in pixels and in margins
# clicks that are not in the middle of what is most wrong
_WRONG_KIND, _LEAST_DEPTH, _ELSEWHERE = 0.15, 2.0, 0.4


def random_region(own: Bools, random: np.random.Generator) -> Bools:
    """What a box or a line around an object encloses."""
    kind = random.random()
    if kind < _BOX:
        return _random_box(own, random)
    margin = int(np.exp(random.uniform(*np.log(_MARGINS))))
    line = line_around(own, margin, random.uniform(*_SIMPLIFIED))
    if kind > 1 - _HULL:
        line = hull_of(line)
    line = line + random.normal(0, _TREMBLING * margin, line.shape)
    return enclosed(points_of(line), own.shape[::-1])


def _random_box(own: Bools, random: np.random.Generator) -> Bools:
    left, top, right, bottom = bounds(own)
    slack = random.uniform(*_BOX_SLACK, 4) * np.array([right - left, bottom - top] * 2)
    area = np.zeros_like(own)
    first, last = np.maximum([left - slack[0], top - slack[1]], 0).astype(int), [right + slack[2], bottom + slack[3]]
    area[first[1] : int(last[1]) + 1, first[0] : int(last[0]) + 1] = True
    return area


def spoiled(own: Bools, others: Bools, random: np.random.Generator) -> Bools:
    """A wrong mask of an object, as tracking may leave it: too large or too small, with parts missing or too many."""
    cv2: Any = import_module("cv2")  # optional
    size, mask = np.sqrt(np.count_nonzero(own)), own.copy()
    if random.random() < 0.5:
        change = cv2.dilate if random.random() < 0.5 else cv2.erode
        mask = change(mask.astype(np.uint8), _disk(random.uniform(0.02, 0.12) * size)) > 0
    cells = (random.integers(3, 9),) * 2
    noise = cv2.resize(random.standard_normal(cells, np.float32), (VIEW_SIDE, VIEW_SIDE), interpolation=cv2.INTER_CUBIC)
    if random.random() < 0.7:
        mask &= noise < random.uniform(0.5, 1.3)
    if random.random() < 0.6:
        near = cv2.dilate(own.astype(np.uint8), _disk(0.3 * size)) > 0
        mask |= near & (noise < -random.uniform(0.8, 1.5))
    if random.random() < 0.35:
        mask |= others
    return mask if random.random() < 0.9 else np.zeros_like(own)


def random_click(shown: Bools, own: Bools, random: np.random.Generator) -> Click | None:
    """A click in what is wrong with a mask, mostly in the middle of what is most wrong; None if nothing is."""
    depths = depths_of(shown, own)
    add = bool(depths[1].max() >= depths[0].max())
    if depths[not add].max() > _LEAST_DEPTH and random.random() < _WRONG_KIND:
        add = not add
    depth = depths[add]
    if depth.max() == 0:
        return None
    place = depth.argmax()
    if random.random() < _ELSEWHERE:
        place = random.choice(np.flatnonzero(depth >= max(depth.max() * random.uniform(0.3, 1), 0.5)))
    y, x = np.unravel_index(place, depth.shape)
    return Click((float(x) + 0.5, float(y) + 0.5), add)


def _disk(radius: float) -> Picture:
    cv2: Any = import_module("cv2")  # optional
    whole = max(1, int(radius))
    disk: Picture = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * whole + 1, 2 * whole + 1))
    return disk
