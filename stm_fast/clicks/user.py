"""A simulated user, who knows the mask of an object [H, W]: where she draws around it, and where she clicks."""

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from stm_fast.boxes import Box
from stm_fast.clicks.prompting import Click
from stm_fast.clicks.regions import Point
from stm_fast.video.first_mask import bounds
from stm_fast.video.grabcut import Bools

Corners = npt.NDArray[np.float64]

_LINE = 1 / 3  # of the margin: by how much a drawn line is simplified


def box_around(own: Bools, margin: int) -> Box:
    """The box of an object, larger on each side by a margin in pixels, inside the frame."""
    left, top, right, bottom = bounds(own)
    left, top = max(left - margin, 0), max(top - margin, 0)
    right, bottom = min(right + margin, own.shape[1]), min(bottom + margin, own.shape[0])
    return Box(left, top, right - left, bottom - top)


def line_around(own: Bools, margin: int, simplified: float = _LINE) -> Corners:
    """A loose line around an object, or around all its parts: x and y of its corners, [N, 2].

    Args:
        margin: between object and line, in pixels.
        simplified: by how much the line may deviate, as a share of the margin.
    """
    cv2: Any = import_module("cv2")  # optional
    pad = 4 * margin
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    grown = cv2.dilate(np.pad(own.astype(np.uint8), pad), disk)
    smooth = cv2.morphologyEx(grown, cv2.MORPH_CLOSE, disk)
    outlines, _ = cv2.findContours(smooth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = outlines[0] if len(outlines) == 1 else cv2.convexHull(np.concatenate(outlines))
    corners: Corners = cv2.approxPolyDP(outline, margin * simplified, True).reshape(-1, 2) - pad + 0.5
    return corners


def hull_of(line: Corners) -> Corners:
    """The convex hull of a line, which does not follow the outline of an object."""
    cv2: Any = import_module("cv2")  # optional
    hull: Corners = cv2.convexHull(line.astype(np.float32)).reshape(-1, 2).astype(np.float64)
    return hull


def points_of(line: Corners) -> tuple[Point, ...]:
    """A line as a gesture has it."""
    return tuple((float(x), float(y)) for x, y in line)


def next_click(shown: Bools, own: Bools) -> Click | None:
    """In the middle of what is wrong with a mask: where it is farthest to what is right. None if nothing is wrong."""
    depths = depths_of(shown, own)
    add = bool(depths[1].max() >= depths[0].max())
    y, x = np.unravel_index(depths[add].argmax(), own.shape)
    return Click((float(x) + 0.5, float(y) + 0.5), add) if depths[add][y, x] > 0 else None


def depths_of(shown: Bools, own: Bools) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The distances [H, W] to what is right, in what is too much of a mask and in what it lacks; 0 elsewhere."""
    cv2: Any = import_module("cv2")  # optional
    too_much, missing = (
        cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        for wrong in (shown & ~own, own & ~shown)
    )
    return too_much, missing
