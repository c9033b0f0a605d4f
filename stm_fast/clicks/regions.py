"""Where an object is: a box or a line around it.

H x W pixels; places x, y are in pixels from the upper left corner of the frame.
"""

from typing import NamedTuple

from stm_fast.boxes import Box
from stm_fast.errors import InputError
from stm_fast.video.first_mask import check_box, check_lasso, ellipse_in, enclosed, rectangle_of
from stm_fast.video.grabcut import Bools

Point = tuple[float, float]


class Region(NamedTuple):
    """A box around an object, or a lasso.

    Attributes:
        box: None where there is a lasso.
        lasso: the corners of a line around the object, which is closed; empty where there is a box.
    """

    box: Box | None = None
    lasso: tuple[Point, ...] = ()


def check_region(region: Region, size: tuple[int, int]) -> None:
    """Raises InputError unless a region is a box or a lasso in a frame of W x H."""
    if (region.box is None) == (not region.lasso):
        raise InputError("found no box or lasso, or both, expected one of them")
    if region.box is not None:
        check_box(region.box, size)
    else:
        check_lasso(region.lasso, size)


def inside_of(region: Region, size: tuple[int, int]) -> Bools:
    """What a region encloses, bool [H, W], in a frame of W x H; raises as `check_region`."""
    check_region(region, size)
    return enclosed(region.lasso, size) if region.box is None else rectangle_of(region.box, size)


def area_of(region: Region, size: tuple[int, int]) -> Bools:
    """The mask [H, W] where nothing is found: what a lasso encloses, or the ellipse in a box; raises likewise."""
    check_region(region, size)
    return enclosed(region.lasso, size) if region.box is None else ellipse_in(region.box, size)
