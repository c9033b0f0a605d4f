"""Whether the values of a mask are ids, or shades of anti-aliased edges."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]
_Counts = npt.NDArray[np.intp]  # [256]
_Flags = npt.NDArray[np.bool_]

WHITE = 255
_CHUNK = 2**20
# a pixel whose neighbors at up to this distance all have its value is not on an edge, or not on a blurred edge
_SIDE, _SIDE_BLURRED = 1, 3
# an edge value has at least this share of its pixels between darker and brighter ones
_MIN_BETWEEN = 0.9
# an edge value touches darker and brighter values about equally: smaller contact over larger
_MIN_BALANCE = 0.25
# at most this share of an object's outline may touch the background directly
_MAX_HARD = 0.5
# a blurred edge has at least _RAMP values; its first and last _ENDS values may cover wider bands
_RAMP, _ENDS = 32, 16
# edge pixels per pixel of a bright object, which may be small; consecutive ids are doubted only on stronger evidence
_MAX_EDGE_BRIGHT = 4
# this many thin shades next to one object are not ids, even if they do not enclose it
_SEVERAL = 3
# the brightest shade of an object's edges is at least its brightness divided by this
_LEAST_SHADE = 8
# at least this share of an image with blurred edges is black or white
_MIN_FLAT = 0.5
# a shaded image has fewer equal neighboring pixels than _ALIKE, or more than _SMOOTH of the others differ by <= _STEP
_ALIKE, _SMOOTH, _STEP = 0.5, 0.95, 8
# what JPEG and resizing turn black and white into, how far from an edge, and on what share of the image
_BLACKISH, _WHITISH = 48, 207
_REACH = 8
_MAX_BETWEEN, _NEARLY_ALL = 0.25, 0.95
# the lowest brightness of an object that is not one of consecutive ids
HALF = 128


def count_values(values: Gray) -> _Counts:
    """How often each value ``[256]`` occurs."""
    counts = np.zeros(256, np.intp)
    flat = values.ravel()
    # in chunks: NumPy converts each value to eight bytes
    for start in range(0, flat.size, _CHUNK):
        counts += np.bincount(flat[start : start + _CHUNK], minlength=256)
    return counts


class Shades(NamedTuple):
    """Values that are not ids.

    Attributes:
        edges: values that occur along edges only.
        others: the values enclosed by edges or bordering them, without the background.
        one_object: whether the mask shows one bright object.
    """

    edges: set[int]
    others: set[int]
    one_object: bool


def find_shades(gray: Gray) -> Shades | None:
    """The shades of a mask ``[H, W]``; None if its values are ids.

    An edge is recognized by its shape, not by its number of values: they occur in a thin band between darker and
    brighter ones, which runs along most of the outline of what it encloses and has a smaller area than that.
    """
    counts = count_values(gray)
    values = np.flatnonzero(counts)
    if _is_smoothed(gray, counts, values):
        return Shades(set(values[:-1].tolist()) - {0}, {int(values[-1])}, True)
    on_edge = _on_edges(gray, counts, _SIDE_BLURRED)
    many = np.count_nonzero(on_edge) >= _RAMP
    if not many:
        on_edge &= _thin(gray, counts, _SIDE)
    if not on_edge.any():
        return Shades(set(), set(values.tolist()), False) if len(values) >= _RAMP and _is_shaded(gray) else None
    other = (counts > 0) & ~on_edge
    other[0] = False
    edges, others = (set(np.flatnonzero(values).tolist()) for values in (on_edge, other))
    ramp = many and all(min(value, WHITE - value) <= _ENDS for value in others)
    inside = other & (np.arange(256) >= HALF) if ramp else other
    if ramp:
        few = counts[: _ENDS + 1].sum() + counts[-_ENDS - 1 :].sum() >= _MIN_FLAT * gray.size
    else:
        bright = len(others) == 1 and max(others) >= HALF and max(edges) >= max(others) // _LEAST_SHADE
        few = counts[on_edge].sum() <= (_MAX_EDGE_BRIGHT if bright else 1) * counts[other].sum()
    if few and _enclosed(gray, on_edge, inside):
        return Shades(edges, others, max(others) >= HALF and (ramp or len(others) == 1))
    return Shades(edges, others, False) if many and _is_shaded(gray) else None


def _is_smoothed(gray: Gray, counts: _Counts, values: _Counts) -> bool:
    """Whether an image is one white object with smooth edges that has parts no wider than an edge.

    In such parts a shade may touch nothing brighter, and resizing leaves ripples.
    """
    shades, many = values[1:-1], len(values) >= _RAMP
    if not len(shades) or values[-1] < _WHITISH or shades[-1] < values[-1] // _LEAST_SHADE:
        return False
    if not _thin(gray, counts, _SIDE_BLURRED if many else _SIDE)[shades].all() or not is_black_and_white(gray):
        return False
    edges, white = np.zeros((2, 256), np.bool_)
    edges[shades], white[values[-1]] = True, True
    return len(shades) >= _SEVERAL or _enclosed(gray, edges, white)


def _on_edges(gray: Gray, counts: _Counts, side: int) -> _Flags:
    """Which values ``[256]`` occur only in thin bands between darker and brighter ones."""
    values = np.flatnonzero(counts)
    if len(values) < 3:
        return np.zeros(256, np.bool_)
    thin = _thin(gray, counts, side)
    thin[[values[0], values[-1]]] = False
    if not thin.any():
        return thin
    touching = _shares(gray, 1, counts)
    evenly: _Flags = (touching.min(0) > 0) & (touching.min(0) >= _MIN_BALANCE * touching.max(0))
    between: _Flags = _shares(gray, 2 * side, counts).min(0) >= _MIN_BETWEEN
    found: _Flags = thin & evenly & between
    return found


def _thin(gray: Gray, counts: _Counts, side: int) -> _Flags:
    """Which values ``[256]`` occur, but nowhere extend `side` pixels in all four directions from a pixel."""
    inside = np.ones(gray.shape, np.bool_)
    for axis in (0, 1):
        for step in range(1, side + 1):
            for one, other in _pairs(axis, step):
                inside[one] &= gray[one] == gray[other]
    found: _Flags = (counts > 0) & (count_values(gray[inside]) == 0)
    return found


def _enclosed(gray: Gray, on_edge: _Flags, other: _Flags) -> bool:
    """Whether most of the outline of the other values borders on an edge."""
    hard = soft = 0
    for axis in (0, 1):
        for one, neighbor in _pairs(axis, 1):
            beside = gray[neighbor][other[gray[one]]]
            hard += int(np.count_nonzero(beside == 0))
            soft += int(np.count_nonzero(on_edge[beside]))
    return hard < _MAX_HARD * (hard + soft)


def _is_shaded(gray: Gray) -> bool:
    """Whether neighboring pixels differ almost everywhere, or only by little: a photograph or a wide blur."""
    steps = np.concatenate([np.abs(np.diff(gray.astype(np.int16), axis=axis)).ravel() for axis in (0, 1)])
    differing = steps[steps > 0]
    return 1 - len(differing) / len(steps) < _ALIKE or bool((differing <= _STEP).mean() >= _SMOOTH)


def is_black_and_white(gray: Gray) -> bool:
    """Whether an image ``[H, W]`` was black and white originally: other shades are few, and near the edges."""
    black, white = gray <= _BLACKISH, gray >= _WHITISH
    between = ~(black | white)
    if not white.any() or between.mean() > _MAX_BETWEEN:
        return False
    # thin parts may not reach white
    by_edges = _near(black, _REACH) & _near(gray >= HALF, _REACH)
    return bool(np.count_nonzero(between & by_edges) >= _NEARLY_ALL * np.count_nonzero(between))


def _shares(gray: Gray, distance: int, counts: _Counts) -> npt.NDArray[np.float64]:
    """For each value, the shares ``[2, 256]`` of its pixels with a darker and with a brighter one within `distance`."""
    darker = _extreme(gray, distance, np.minimum) < gray
    brighter = _extreme(gray, distance, np.maximum) > gray
    found = [count_values(gray[at]) for at in (darker, brighter)]
    return np.stack(found) / np.maximum(counts, 1)


def _extreme(gray: Gray, distance: int, which: np.ufunc) -> Gray:
    """The minimum or maximum ``[H, W]`` over a square of 2 `distance` + 1 pixels."""
    for axis in (0, 1):
        found = gray.copy()
        for step in range(1, distance + 1):
            for one, other in _pairs(axis, step):
                found[one] = which(found[one], gray[other])
        gray = found
    return gray


def _near(found: _Flags, distance: int) -> npt.NDArray[np.bool_]:
    return _extreme(found.view(np.uint8), distance, np.maximum).astype(np.bool_)


def _pairs(axis: int, step: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Indices of pixels and of their neighbors at distance `step`, in both directions."""
    head, tail = slice(None, -step), slice(step, None)
    for one, other in ((head, tail), (tail, head)):
        yield ((one,), (other,)) if axis == 0 else ((slice(None), one), (slice(None), other))
