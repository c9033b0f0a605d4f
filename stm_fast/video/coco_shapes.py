"""Shapes of COCO instances as masks. They are validated here, because pycocotools trusts its input.

A shape, called ``segmentation`` in the file, is one of

* polygons, each a list x, y, x, y, ... in pixels, closed from its last point to its first;
* run lengths, ``{"size": [H, W], "counts": [...]}``: numbers of background and object pixels, alternating, in
  column-major order;
* the same with the counts as text, see `stm_fast.video.run_lengths`.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, shown
from stm_fast.versions import how_to_install
from stm_fast.video.run_lengths import Counts, unpacked

# per image: with three counts of more than 2^24 pixels, pycocotools could write past its buffer
MAX_PIXELS = 50_000_000
# how far a point may be outside the image: a share of the side, or this many pixels if that is more
_BEYOND = 0.1
_MIN_BEYOND = 8
_MIN_NUMBERS = 6  # per polygon: three points
# pycocotools samples an outline every fifth of a pixel; this many samples take 64 MiB
_STEPS = 5
_MAX_STEPS = 2**22
# run lengths as text: characters "P" to "o" are followed by more of the same number, which has at most 30 bits
_PACKED = re.compile("(?:[P-o]{0,5}[0-O])+")
_MAX_CHARACTERS = 6  # per number


def require_pycocotools(what: str) -> None:
    """Raises InputError, which says how to install it, if pycocotools is missing; `what` needs it."""
    if find_spec("pycocotools") is None:
        raise InputError(f"{what} needs pycocotools: {how_to_install('coco')}")


def image_size(entry: dict[str, Any]) -> tuple[int, int]:
    """The size H, W in the entry of an image. Raises InputError, which does not name the entry, for an invalid one."""
    height, width = (_side(entry, key) for key in ("height", "width"))
    if height * width > MAX_PIXELS:
        raise InputError(f"found {width}x{height} pixels, expected at most {MAX_PIXELS} in all")
    return height, width


def check_shape(shape: Any, size: tuple[int, int]) -> None:
    """Raises InputError, which does not name the entry, if `shape` is not valid in an image of `size` H, W."""
    if isinstance(shape, list):
        _check_polygons(shape, size)
    elif isinstance(shape, dict):
        _check_run_lengths(shape, size)
    else:
        raise InputError(f"found segmentation {shown(shape)}, expected polygons or run lengths")


def rasterize(shape: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask bool [W * H], column-major, as pycocotools draws a shape that `check_shape` accepts.

    Raises InputError if the shape is of polygons, and pycocotools is not installed.
    """
    parts = [shape] if isinstance(shape, dict) else _run_lengths(shape, size)
    return _filled([_lengths(part["counts"]) for part in parts])


def _run_lengths(polygons: list[Any], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Polygons as run lengths, each by itself."""
    require_pycocotools("drawing polygons")
    from pycocotools import mask

    found: list[dict[str, Any]] = mask.frPyObjects(polygons, *size)
    return found


def _side(entry: dict[str, Any], key: str) -> int:
    side = entry.get(key)
    if type(side) is not int or not 1 <= side <= MAX_PIXELS:
        raise InputError(f"found {key} {shown(side)}, expected 1 to {MAX_PIXELS} pixels")
    return side


def _filled(parts: Sequence[Counts]) -> npt.NDArray[np.bool_]:
    """The mask of the union of several run lengths."""
    if len(parts) == 1:
        return np.repeat(np.arange(len(parts[0])) % 2 == 1, parts[0])
    # a sweep over the ends of all runs: +1 where an object begins, -1 where it ends
    places = np.concatenate([np.cumsum(counts) for counts in parts])
    begun = np.concatenate([1 - 2 * (np.arange(len(counts)) % 2) for counts in parts])
    order = np.argsort(places, kind="stable")
    overlap = np.cumsum(begun[order])
    return np.repeat(np.concatenate([[0], overlap[:-1]]) > 0, np.diff(places[order], prepend=0))


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    if not polygons:
        raise InputError("found no polygon in its segmentation, expected one at least")
    steps = 0.0
    for polygon in polygons:
        _check_numbers(polygon)
        steps += len(polygon) + _STEPS * len(polygon) / 2 * _check_points(polygon, size)
    # the sum is an upper bound; the exact length is computed only if the bound is too large
    if steps > _MAX_STEPS and sum(map(_steps, polygons)) > _MAX_STEPS:
        most = _MAX_STEPS // _STEPS
        raise InputError(f"found an outline that is too long, expected at most {most} pixels")


def _check_numbers(polygon: Any) -> None:
    if type(polygon) is not list:
        raise InputError(f"found {shown(polygon)} as a polygon, expected a list of numbers")
    if not set(map(type, polygon)) <= {int, float}:
        wrong = next(number for number in polygon if type(number) not in (int, float))
        raise InputError(f"found {shown(wrong)} in a polygon, expected numbers")
    if len(polygon) < _MIN_NUMBERS or len(polygon) % 2:
        raise InputError(f"found a polygon of {len(polygon)} numbers, expected x and y of three points or more")


def _check_points(polygon: list[float], size: tuple[int, int]) -> float:
    """Raises InputError for a point outside the image. Returns the longer side of the bounding box."""
    extent = 0.0
    for name, numbers, side in (("x", polygon[::2], size[1]), ("y", polygon[1::2], size[0])):
        beyond = max(_BEYOND * side, _MIN_BEYOND)
        low, high = min(numbers), max(numbers)
        # min() and max() miss a NaN that is not first
        if not (-beyond <= low and high <= side + beyond) or isnan(sum(numbers)):
            wrong = next(number for number in numbers if not -beyond <= number <= side + beyond)
            found = f"found {name} {shown(wrong)} of a point"
            raise InputError(f"{found}, expected 0 to {side} or at most {beyond:g} pixels outside")
        extent = max(extent, high - low)
    return extent


def _steps(polygon: list[float]) -> float:
    """About how many samples pycocotools takes of the outline of a polygon."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float((_STEPS * abs(points - np.roll(points, 1, 0)).max(1) + 2).sum())


def _check_run_lengths(shape: dict[str, Any], size: tuple[int, int]) -> None:
    if shape.get("size") != list(size):
        found = shown(shape.get("size"))
        raise InputError(f"found run lengths of size {found}, expected {list(size)}, the size of the image")
    counts: Any = shape.get("counts")
    pixels = size[0] * size[1]
    if not _has_form(counts, pixels):
        found = shown(counts)
        raise InputError(f"found counts {found}, expected run lengths of {pixels} pixels")
    lengths = _lengths(counts)
    if lengths.min() < 0 or lengths.max() > pixels or lengths.sum() != pixels:
        found = shown(lengths[:7].tolist())
        raise InputError(f"found runs of {found} pixels, expected {pixels} in all, as in the image")


def _has_form(counts: Any, pixels: int) -> bool:
    """Whether counts look like run lengths; they are not unpacked."""
    if isinstance(counts, list):
        return set(map(type, counts)) == {int} and max(map(abs, counts)) <= pixels
    # text that is longer would hold runs of no pixels
    short = isinstance(counts, str) and len(counts) <= _MAX_CHARACTERS * (pixels + 1)
    return short and _PACKED.fullmatch(counts) is not None


def _lengths(counts: list[int] | str | bytes) -> Counts:
    if isinstance(counts, list):
        return np.array(counts, np.int64)
    return unpacked(counts.encode("ascii") if isinstance(counts, str) else counts)
