"""A click corrects a mask near it: a graph cut between what looks like the place of the click and the rest.

H x W pixels; places x, y are in pixels from the upper left corner of the image.
"""

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from stm_fast.video.first_mask import check_click
from stm_fast.video.grabcut import Bools, Part, Picture, color_models, graph_cut, is_object, require_opencv

Point = tuple[float, float]
Distances = npt.NDArray[np.float32]

# A user clicks the middle of what is wrong, and its nearest border is mostly that of the mask: the distance from the
# click to this border is the scale of the correction. It is limited by a share of the square root of the mask's area
# and, below, by a share of the shorter side of the image, unless the mask is small.
_MOST_DISTANCE, _LEAST_DISTANCE, _LEAST_OF_SMALL = 0.17, 0.0125, 0.45
# in distances: what is wrong for certain, and as far as a correction reaches
_SEED, _REACH = 0.6, 3.5
# a correction of more than so many disks with the distance as radius, or so much of the mask, is not plausible
_MOST_DISKS, _MOST_SHARE = 4, 0.2
# the longer side of the part that is cut: smaller ones are enlarged, up to this factor, larger ones reduced
_LEAST_SIDE, _MOST_SCALE, _MOST_SIDE = 120, 4, 160
# in steps of color, by which pixels around the click are varied: few of them must stand for many
_VARIATION = 8
_VARIATIONS = _VARIATION * np.array(
    [[0, 0, 0], [1, 1, 1], [-1, -1, -1], [1, -1, 0], [-1, 1, 0], [0, 1, -1], [0, -1, 1]]
)
_MOST_SEEDS, _MOST_PIXELS = 300, 4000  # for the color models
_LEAST_PIXELS = 10


def corrected(image: Picture, shown: Bools, point: Point, add: bool) -> Bools:
    """A mask, corrected around a click: always the same for the same image, mask and click.

    Args:
        image: uint8 [H, W, 3] RGB.
        shown: bool [H, W], the mask to be corrected.
        point: x and y of the click, in the image.
        add: whether the object is missing there; otherwise the mask is too large there.

    Returns:
        bool [H, W]. Pixels are only added, or only taken away: one connected region, which contains the click. A click
        where nothing is wrong changes nothing.

    Raises:
        InputError: OpenCV is missing, or the click is outside the image.
    """
    require_opencv()
    check_click(point, (image.shape[1], image.shape[0]))
    mask = shown.copy()
    if shown[int(point[1]), int(point[0])] == add:
        return mask
    distance = _distance(shown, point, add)
    window = _window(point, _REACH * distance, (image.shape[1], image.shape[0]))
    wrong = shown[window.slices] != add
    away = _away(window, point)
    certain = wrong & (away <= _SEED * distance)
    certain[int(point[1]) - window.top, int(point[0]) - window.left] = True
    found = certain | wrong & (away <= _REACH * distance) & _alike(image, window, wrong, away / distance)
    changed = _connected(found, window, point)
    limit = min(_MOST_DISKS * np.pi * distance**2, _MOST_SHARE * np.count_nonzero(shown))
    if np.count_nonzero(changed) > limit:
        changed = _connected(certain, window, point)
    mask[window.slices][changed] = add
    return mask


def connected_change(wanted: Bools, point: Point, radius: int = 2) -> Bools:
    """Of a change, bool [H, W], the connected region around a click; at least a disk, so that no click is lost."""
    cv2: Any = import_module("cv2")  # optional
    place = int(point[0]), int(point[1])
    marked = cv2.circle(wanted.astype(np.uint8), place, radius, 1, cv2.FILLED)
    return _connected(marked > 0, Part(0, 0, wanted.shape[1], wanted.shape[0], 1), point)


def _distance(shown: Bools, point: Point, add: bool) -> float:
    """From the click to the nearest pixel that is right, within limits."""
    height, width = shown.shape
    side = np.sqrt(np.count_nonzero(shown))
    least, most = min(_LEAST_DISTANCE * min(height, width), _LEAST_OF_SMALL * side), _MOST_DISTANCE * side
    window = _window(point, most, (width, height))
    right = shown[window.slices] == add
    nearest = _away(window, point)[right].min(initial=most)
    return float(max(least, nearest))


def _window(point: Point, reach: float, size: tuple[int, int]) -> Part:
    """The pixels of an image of W x H that are in reach of a click, and a border around them."""
    left, top = (max(int(one - reach) - 2, 0) for one in point)
    right, bottom = (min(int(one + reach) + 3, most) for one, most in zip(point, size, strict=True))
    side = max(right - left, bottom - top)
    return Part(left, top, right, bottom, min(_MOST_SCALE, max(1, _LEAST_SIDE / side), _MOST_SIDE / side))


def _away(part: Part, point: Point) -> Distances:
    """The distances [h, w] of the pixels of a part from a click."""
    x = np.arange(part.left, part.right, dtype=np.float32) + np.float32(0.5 - point[0])
    y = np.arange(part.top, part.bottom, dtype=np.float32) + np.float32(0.5 - point[1])
    found: Distances = np.hypot(x, y[:, None])
    return found


def _alike(image: Picture, window: Part, wrong: Bools, away: Distances) -> Bools:
    """What of a window [h, w] belongs to the place of the click by colors and edges; `away` is in distances.

    Where nothing is wrong, the cut costs nothing: what is corrected may end there as well as at an edge.
    """
    cv2: Any = import_module("cv2")  # optional
    guess = np.full(wrong.shape, cv2.GC_PR_BGD, np.uint8)
    guess[away > _REACH] = cv2.GC_BGD
    guess[~wrong | (away <= _SEED)] = cv2.GC_FGD
    guess = window.scaled_labels(guess)
    zone = window.scaled_labels(np.where(wrong, 1 + (away > _SEED) + (away > 2 * _SEED), 0).astype(np.uint8))
    picture = window.scaled(image)
    near, far = picture[zone == 1], picture[zone == 3]
    if len(near) < _LEAST_PIXELS or len(far) < _LEAST_PIXELS:
        return np.zeros_like(wrong)
    graph_cut(picture, guess, color_models(_thinned(far, _MOST_PIXELS), _varied(_thinned(near, _MOST_SEEDS))))
    return window.restored(is_object(guess))


def _thinned(pixels: Picture, most: int) -> Picture:
    return pixels[:: max(1, len(pixels) // most)]


def _varied(pixels: Picture) -> Picture:
    varied: Picture = np.clip(pixels[:, None].astype(np.int16) + _VARIATIONS, 0, 255).astype(np.uint8)
    return varied.reshape(-1, 3)


def _connected(wanted: Bools, window: Part, point: Point) -> Bools:
    """The connected region of a window [h, w] that a click is in."""
    cv2: Any = import_module("cv2")  # optional
    _, labels = cv2.connectedComponents(wanted.astype(np.uint8), connectivity=4)
    found: Bools = labels == labels[int(point[1]) - window.top, int(point[0]) - window.left]
    return found
