"""A gesture of the user becomes a mask: pure functions of a frame, the mask that is shown, and the gesture.

H x W pixels; places x, y are in pixels from the upper left corner of the frame.
"""

from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stm_fast.clicks.regions import Point, Region, check_region
from stm_fast.errors import InputError
from stm_fast.video.click import corrected
from stm_fast.video.first_mask import (
    MOST_POINTS,
    FirstMask,
    check_points,
    mask_from_box,
    mask_from_lasso,
    require_opencv,
)
from stm_fast.video.grabcut import Bools, Picture

# of a brush, as a share of the longer side of the frame
_MOST_RADIUS = 0.25


class Stroke(NamedTuple):
    """What a round brush or eraser touches.

    Attributes:
        points: of the line along which it is moved.
        radius: in pixels.
        add: whether it is the brush.
    """

    points: tuple[Point, ...]
    radius: float
    add: bool


class Prompter(Protocol):
    """What makes masks of regions and clicks.

    Attributes:
        clicks_alone: whether a click without a mask gives one.
    """

    clicks_alone: bool

    def from_region(self, image: Picture, region: Region) -> FirstMask:
        """A new mask, never empty, for a frame uint8 [H, W, 3]. Raises InputError as `check_region`."""

    def from_click(self, image: Picture, shown: Bools, point: Point, add: bool) -> Bools:
        """The mask [H, W], corrected near a click. Raises InputError if the click is outside the frame.

        Args:
            image: the frame, uint8 [H, W, 3].
            shown: the mask to be corrected, bool [H, W].
            point: x, y.
            add: pixels are only added; otherwise they are only taken away.
        """


class GrabCut:
    """GrabCut, on color and edges alone, without weights."""

    clicks_alone = False

    def from_region(self, image: Picture, region: Region) -> FirstMask:
        check_region(region, (image.shape[1], image.shape[0]))
        if region.box is None:
            return mask_from_lasso(image, region.lasso)
        return mask_from_box(image, region.box)

    def from_click(self, image: Picture, shown: Bools, point: Point, add: bool) -> Bools:
        if not shown.any():
            raise InputError("found a click where no mask is shown, expected a box or a lasso around the object first")
        return corrected(image, shown, point, add)


def check_stroke(stroke: Stroke, size: tuple[int, int]) -> None:
    """Raises InputError unless a stroke is one for a frame of W x H; it may be outside."""
    if not 1 <= len(stroke.points) <= MOST_POINTS:
        raise InputError(f"found a stroke of {len(stroke.points)} points, expected 1 to {MOST_POINTS}")
    check_points(stroke.points)
    largest = _MOST_RADIUS * max(size)
    if not 0 < stroke.radius <= largest:
        raise InputError(f"found the brush radius {stroke.radius:g}, expected one above 0 and at most {largest:g}")


def painted(shown: Bools, stroke: Stroke) -> Bools:
    """A mask [H, W] with what the brush touches, or without what the eraser touches.

    Raises InputError if OpenCV is missing or the stroke is not valid.
    """
    require_opencv()
    height, width = shown.shape
    check_stroke(stroke, (width, height))
    touched = _touched(np.asarray(stroke.points, float), stroke.radius, (width, height))
    return shown | touched if stroke.add else shown & ~touched


def _touched(points: npt.NDArray[np.float64], radius: float, size: tuple[int, int]) -> Bools:
    """The pixels within `radius` of a line, bool [H, W].

    Its time and memory depend neither on the number of points nor on the radius, unlike those of a thick line.
    """
    cv2: Any = import_module("cv2")  # optional
    reach = int(np.ceil(radius)) + 1
    # the part of the frame and its surroundings that the line is drawn in
    first = np.clip(np.floor(points.min(0)), -reach, size).astype(int) - reach
    last = np.clip(np.floor(points.max(0)), -reach, np.add(size, reach)).astype(int) + reach + 1
    off_line = np.ones((last - first)[::-1], np.uint8)
    corners = np.rint(np.clip(points, -(2**15), 2**16) - 0.5 - first).astype(np.int32)
    # OpenCV draws nothing of a line with one point only
    cv2.polylines(off_line, [np.vstack((corners, corners[-1:]))], False, 0)
    away = cv2.distanceTransform(off_line, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    (left, top), (right, bottom) = np.maximum(first, 0), np.minimum(last, size)
    touched = np.zeros(size[::-1], bool)
    if left < right and top < bottom:
        near = away[top - first[1] : bottom - first[1], left - first[0] : right - first[0]]
        touched[top:bottom, left:right] = near <= radius
    return touched
