"""Whether the values of a mask are ids, or the shades of edges that a paint program has smoothed."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.uint8]
_Counts = npt.NDArray[np.intp]  # [256]
_Flags = npt.NDArray[np.bool_]

WHITE = 255
_PART = 2**20
# pixels on both sides of one: where so many have its value it is on no edge; and on no blurred one
_SIDE, _SIDE_BLURRED = 1, 3
# of the pixels of a value: so many lie between darker and brighter ones where the value is one of an edge
_MOSTLY = 0.9
# of the contact with darker and with brighter values: the lesser over the greater
_EVENLY = 0.25
# of the outline of what is no edge: so much may border on the background
_MOST_HARD = 0.5
# a blurred edge has so many values or more, and its first and last ones, so many on both sides, are over wider bands
_RAMP, _ENDS = 32, 16
# pixels of edges for each of a bright object, which may be small; ids that somebody counted to want more to be doubted
_MOST_EDGE_BRIGHT = 4
# thin shades by one object that are no ids, whether they run along all of it or not
_SEVERAL = 3
# of the brightness of an object: the brightest shade of its edges is no less
_LEAST_SHADE = 8
# of the picture, that is black or white, where edges are blurred
_LEAST_FLAT = 0.5
# of neighboring pixels: in a picture of shades fewer are alike, or more differ by no more than `_STEP`
_ALIKE, _SMOOTH, _STEP = 0.5, 0.95, 8
# what JPEG and resizing make of black and white, how far from where they meet, and on how much of the picture
_BLACKISH, _WHITISH = 48, 207
_REACH = 8
_MOST_BETWEEN, _NEARLY_ALL = 0.25, 0.95
# the least brightness of an object that is no id which somebody counted to
HALF = 128


def count_values(values: Grey) -> _Counts:
    """How often each value ``[256]`` occurs."""
    counts = np.zeros(256, np.intp)
    flat = values.ravel()
    # in parts: NumPy makes eight bytes of each
    for start in range(0, flat.size, _PART):
        counts += np.bincount(flat[start : start + _PART], minlength=256)
    return counts


class Shades(NamedTuple):
    """Values that are no ids.

    Attributes:
        edges: values that occur along edges only.
        others: the values that these enclose, or lie between, without the background.
        one_object: whether all of it is one bright object.
    """

    edges: set[int]
    others: set[int]
    one_object: bool


def find_shades(grey: Grey) -> Shades | None:
    """The shades of a mask ``[H, W]``; None where its values are ids.

    An edge is told by its shape, not by how many values there are: its values occur in a thin band between darker and
    brighter ones, which runs along most of what it encloses and covers less of the picture than that does.
    """
    counts = count_values(grey)
    values = np.flatnonzero(counts)
    if _is_smoothed(grey, counts, values):
        return Shades(set(values[:-1].tolist()) - {0}, {int(values[-1])}, True)
    on_edge = _on_edges(grey, counts, _SIDE_BLURRED)
    many = np.count_nonzero(on_edge) >= _RAMP
    if not many:
        on_edge &= _thin(grey, counts, _SIDE)
    if not on_edge.any():
        return Shades(set(), set(values.tolist()), False) if len(values) >= _RAMP and _is_shaded(grey) else None
    other = (counts > 0) & ~on_edge
    other[0] = False
    edges, others = (set(np.flatnonzero(values).tolist()) for values in (on_edge, other))
    ramp = many and all(min(value, WHITE - value) <= _ENDS for value in others)
    inside = other & (np.arange(256) >= HALF) if ramp else other
    if ramp:
        few = counts[: _ENDS + 1].sum() + counts[-_ENDS - 1 :].sum() >= _LEAST_FLAT * grey.size
    else:
        bright = len(others) == 1 and max(others) >= HALF and max(edges) >= max(others) // _LEAST_SHADE
        few = counts[on_edge].sum() <= (_MOST_EDGE_BRIGHT if bright else 1) * counts[other].sum()
    if few and _enclosed(grey, on_edge, inside):
        return Shades(edges, others, max(others) >= HALF and (ramp or len(others) == 1))
    return Shades(edges, others, False) if many and _is_shaded(grey) else None


def _is_smoothed(grey: Grey, counts: _Counts, values: _Counts) -> bool:
    """Whether a picture is one white object with smooth edges, some of which are as thin as they are.

    There a shade need not have anything brighter beside it, and resizing leaves ripples.
    """
    shades, many = values[1:-1], len(values) >= _RAMP
    if not len(shades) or values[-1] < _WHITISH or shades[-1] < values[-1] // _LEAST_SHADE:
        return False
    if not _thin(grey, counts, _SIDE_BLURRED if many else _SIDE)[shades].all() or not is_black_and_white(grey):
        return False
    edges, white = np.zeros((2, 256), np.bool_)
    edges[shades], white[values[-1]] = True, True
    return len(shades) >= _SEVERAL or _enclosed(grey, edges, white)


def _on_edges(grey: Grey, counts: _Counts, side: int) -> _Flags:
    """Which values ``[256]`` occur in thin bands only, between darker and brighter ones."""
    values = np.flatnonzero(counts)
    if len(values) < 3:
        return np.zeros(256, np.bool_)
    thin = _thin(grey, counts, side)
    thin[[values[0], values[-1]]] = False
    if not thin.any():
        return thin
    touching = _shares(grey, 1, counts)
    evenly: _Flags = (touching.min(0) > 0) & (touching.min(0) >= _EVENLY * touching.max(0))
    between: _Flags = _shares(grey, 2 * side, counts).min(0) >= _MOSTLY
    found: _Flags = thin & evenly & between
    return found


def _thin(grey: Grey, counts: _Counts, side: int) -> _Flags:
    """Which values ``[256]`` are nowhere wider than `side` pixels on both sides of one."""
    inside = np.ones(grey.shape, np.bool_)
    for axis in (0, 1):
        for step in range(1, side + 1):
            for one, other in _pairs(axis, step):
                inside[one] &= grey[one] == grey[other]
    found: _Flags = (counts > 0) & (count_values(grey[inside]) == 0)
    return found


def _enclosed(grey: Grey, on_edge: _Flags, other: _Flags) -> bool:
    """Whether most of the outline of what is no edge borders on one."""
    hard = soft = 0
    for axis in (0, 1):
        for one, neighbor in _pairs(axis, 1):
            beside = grey[neighbor][other[grey[one]]]
            hard += int(np.count_nonzero(beside == 0))
            soft += int(np.count_nonzero(on_edge[beside]))
    return hard < _MOST_HARD * (hard + soft)


def _is_shaded(grey: Grey) -> bool:
    """Whether neighboring pixels differ nearly everywhere, or where they do, by little: a photograph, a wide blur."""
    steps = np.concatenate([np.abs(np.diff(grey.astype(np.int16), axis=axis)).ravel() for axis in (0, 1)])
    differing = steps[steps > 0]
    return 1 - len(differing) / len(steps) < _ALIKE or bool((differing <= _STEP).mean() >= _SMOOTH)


def is_black_and_white(grey: Grey) -> bool:
    """Whether a picture ``[H, W]`` was black and white once: other shades are few, and by the edges."""
    black, white = grey <= _BLACKISH, grey >= _WHITISH
    between = ~(black | white)
    if not white.any() or between.mean() > _MOST_BETWEEN:
        return False
    # thin parts need not be white anywhere
    by_edges = _near(black, _REACH) & _near(grey >= HALF, _REACH)
    return bool(np.count_nonzero(between & by_edges) >= _NEARLY_ALL * np.count_nonzero(between))


def _shares(grey: Grey, distance: int, counts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """For each value the shares ``[2, 256]`` of its pixels with a darker and with a brighter one at most so far off."""
    darker = _extreme(grey, distance, np.minimum) < grey
    brighter = _extreme(grey, distance, np.maximum) > grey
    found = [count_values(grey[at]) for at in (darker, brighter)]
    return np.stack(found) / np.maximum(counts, 1)


def _extreme(grey: Grey, distance: int, which: np.ufunc) -> Grey:
    """The least or the greatest value ``[H, W]`` of a square of 2 `distance` + 1 pixels."""
    for axis in (0, 1):
        found = grey.copy()
        for step in range(1, distance + 1):
            for one, other in _pairs(axis, step):
                found[one] = which(found[one], grey[other])
        grey = found
    return grey


def _near(found: npt.NDArray[np.bool_], distance: int) -> npt.NDArray[np.bool_]:
    return _extreme(found.view(np.uint8), distance, np.maximum).astype(np.bool_)


def _pairs(axis: int, step: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Indices of pixels and of those `step` further on, in both directions."""
    head, tail = slice(None, -step), slice(step, None)
    for one, other in ((head, tail), (tail, head)):
        yield ((one,), (other,)) if axis == 0 else ((slice(None), one), (slice(None), other))
