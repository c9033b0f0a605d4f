"""The mask of an object from a box or a line around it, by GrabCut (Rother et al., SIGGRAPH 2004).

H x W pixels; places x, y are in pixels from the upper left corner of the image.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from stm_fast.boxes import Box
from stm_fast.errors import InputError
from stm_fast.video.grabcut import Bools, Part, Picture, grabcut, is_object, require_opencv

__all__ = ["Bools", "Box", "FirstMask", "check_box", "mask_from_box", "require_opencv"]

# x and y of its corners
Lasso = Sequence[tuple[float, float]]

# around the box, as a share of its longer side and in pixels: what GrabCut knows to be background
_MARGIN, _MIN_MARGIN = 0.35, 10
# the longer side of the part that GrabCut sees: smaller ones are enlarged, up to this factor, larger ones reduced
_LEAST_SIDE, _MOST_SCALE, _MOST_SIDE = 160, 4, 256
_ROUNDS, _LAST_ROUNDS = 5, 2
# of a line that a person draws
MOST_POINTS = 10_000
_SHIFT = 4  # OpenCV draws with 16 steps to a pixel
# an object fills more of its box
LEAST_SHARE = 0.05
# what is farther inside a lasso than this share of the greatest distance from its line is the object
_CORE, _MORE_THAN_CORE = 0.6, 1.1
_CONVEX = 0.95  # a region fills less of its convex hull if it bends inward


class FirstMask(NamedTuple):
    """The mask of a box or a lasso.

    Attributes:
        mask: bool [H, W].
        found: whether the object was found; otherwise the mask is the ellipse inscribed in the box, or all that the
            lasso encloses.
    """

    mask: Bools
    found: bool


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Raises InputError, which does not name the box, if no pixel of an image of W x H is in it."""
    if not all(map(np.isfinite, box)) or box.width <= 0 or box.height <= 0:
        raise InputError(f"found the box {shown_box(box)}, expected finite numbers, and a width and height above 0")
    left, top, right, bottom = _pixels(box, size)
    if left >= right or top >= bottom:
        raise InputError(f"found the box {shown_box(box)}, expected one inside the frame of {size[0]}x{size[1]}")


def shown_box(box: Box) -> str:
    """As in an option."""
    return ",".join(f"{float(number):.6g}" for number in box)


def mask_from_box(image: Picture, box: Box) -> FirstMask:
    """The mask of the object in a box: always the same for the same image and box.

    Args:
        image: uint8 [H, W, 3] RGB.
        box: around the object; parts outside the image are ignored.

    Returns:
        The mask is never empty. If GrabCut finds nothing, it is the ellipse inscribed in the box.

    Raises:
        InputError: OpenCV is missing, or the box has no pixel in the image.
    """
    require_opencv()
    height, width = image.shape[:2]
    region = rectangle_of(box, (width, height))
    part = _part_around(bounds(region), (width, height))
    guess = _guess(region, part)
    grabcut(part.scaled(image), guess, _ROUNDS)
    found = _restored(guess, part, image.shape[:2])
    if np.count_nonzero(found) >= LEAST_SHARE * np.count_nonzero(region):
        return FirstMask(found, True)
    return FirstMask(ellipse_in(box, (width, height)), False)


def mask_from_lasso(image: Picture, lasso: Lasso) -> FirstMask:
    """The mask of the object that a person drew a line around: always the same for the same image and line.

    Args:
        image: uint8 [H, W, 3] RGB.
        lasso: the corners of the line, x and y. It is closed, and may cross itself; parts outside the image are
            ignored.

    Returns:
        The mask is never empty. If GrabCut finds nothing, it is all that the line encloses.

    Raises:
        InputError: OpenCV is missing, or the line is not valid: as `check_lasso`.
    """
    require_opencv()
    cv2: Any = import_module("cv2")  # optional
    height, width = image.shape[:2]
    region = enclosed(lasso, (width, height))
    part = _part_around(bounds(region), (width, height))
    picture, guess, inside = part.scaled(image), _guess(region, part), _scaled(region, part)
    if (picture == picture[0, 0]).all():  # nothing to find
        return FirstMask(region, False)
    core = _core(inside)
    guess[core] = cv2.GC_FGD
    grabcut(picture, guess, _ROUNDS - _LAST_ROUNDS)
    certain = _bends_inward(inside)
    if not certain:
        guess[core] = cv2.GC_PR_FGD
    grabcut(picture, guess, _LAST_ROUNDS)
    found = _restored(guess, part, region.shape) & region  # scaling moves its border
    least = _MORE_THAN_CORE * np.count_nonzero(core) / part.scale**2 if certain else 0
    if np.count_nonzero(found) > max(least, LEAST_SHARE * np.count_nonzero(region)):
        return FirstMask(found, True)
    return FirstMask(region, False)


def ellipse_in(box: Box, size: tuple[int, int]) -> Bools:
    """The ellipse inscribed in a box, bool [H, W], in an image of W x H. Raises InputError as `check_box`."""
    check_box(box, size)
    return _ellipse(_pixels(box, size), size)


def rectangle_of(box: Box, size: tuple[int, int]) -> Bools:
    """What a box encloses, bool [H, W], in an image of W x H. Raises InputError as `check_box`."""
    check_box(box, size)
    return _rectangle(_pixels(box, size), size)


def check_click(point: tuple[float, float], size: tuple[int, int]) -> None:
    """Raises InputError if a click is outside an image of W x H."""
    if not (0 <= point[0] < size[0] and 0 <= point[1] < size[1]):
        expected = f"expected one inside the frame of {size[0]}x{size[1]}"
        raise InputError(f"found a click at {point[0]:g}, {point[1]:g}, {expected}")


def check_lasso(lasso: Lasso, size: tuple[int, int]) -> None:
    """Raises InputError, which does not name the lasso, unless it is one in an image of W x H."""
    if not 3 <= len(lasso) <= MOST_POINTS:
        raise InputError(f"found a lasso of {len(lasso)} points, expected 3 to {MOST_POINTS}")
    check_points(lasso)
    xs, ys = zip(*lasso, strict=True)
    if min(xs) >= size[0] or max(xs) < 0 or min(ys) >= size[1] or max(ys) < 0:
        raise InputError(f"found a lasso outside the frame, expected one inside its {size[0]}x{size[1]} pixels")


def check_points(points: Lasso) -> None:
    """Raises InputError if a coordinate is not a finite number."""
    if not np.isfinite(np.asarray(points, float)).all():
        raise InputError("found a point that is not finite, expected numbers of pixels")


def enclosed(lasso: Lasso, size: tuple[int, int]) -> Bools:
    """What a closed line encloses in an image of W x H, bool [H, W], with the pixels of the line; never empty.

    Raises InputError as `check_lasso`.
    """
    check_lasso(lasso, size)
    cv2: Any = import_module("cv2")  # optional
    # far outside, the place of a corner does not matter much, and OpenCV's numbers have 32 bits
    near = np.clip(np.asarray(lasso, float), -max(size), 2 * max(size))
    corners = [np.rint((near - 0.5) * (1 << _SHIFT)).astype(np.int32)]
    drawn = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(drawn, corners, 1, shift=_SHIFT)
    cv2.polylines(drawn, corners, True, 1, shift=_SHIFT)
    # where the line crosses itself, fillPoly leaves holes
    outlines, _ = cv2.findContours(drawn, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, 1, cv2.FILLED)
    if not drawn.any():
        raise InputError(f"found a lasso outside the frame, expected one inside its {size[0]}x{size[1]} pixels")
    return drawn > 0


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first column and row of a box in an image of W x H, and the first ones after it."""
    left, top = max(box.x, 0), max(box.y, 0)
    right, bottom = min(box.x + box.width, size[0]), min(box.y + box.height, size[1])
    # a box narrower than a pixel keeps the pixel that it is in
    return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))


def _rectangle(inside: tuple[int, int, int, int], size: tuple[int, int]) -> Bools:
    """The pixels of a rectangle, in an image of W x H."""
    region = np.zeros(size[::-1], bool)
    region[inside[1] : inside[3], inside[0] : inside[2]] = True
    return region


def bounds(mask: Bools) -> tuple[int, int, int, int]:
    """The first column and row of a mask [H, W] that is not empty, and the first ones after it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _part_around(inside: tuple[int, int, int, int], size: tuple[int, int]) -> Part:
    """What GrabCut sees of an image of W x H."""
    left, top, right, bottom = inside
    margin = max(_MIN_MARGIN, int(_MARGIN * max(right - left, bottom - top)))
    left, top = max(left - margin, 0), max(top - margin, 0)
    right, bottom = min(right + margin, size[0]), min(bottom + margin, size[1])
    side = max(right - left, bottom - top)
    return Part(left, top, right, bottom, min(_MOST_SCALE, max(1, _LEAST_SIDE / side), _MOST_SIDE / side))


def _guess(region: Bools, part: Part) -> Picture:
    """What is known before GrabCut, uint8 [h, w] for the scaled part: the object is inside a region [H, W]."""
    cv2: Any = import_module("cv2")  # optional
    inside = region[part.slices]
    guess = np.where(inside, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_BGD))
    if inside.all():  # the whole image: no background is known
        guess[~_ellipse(part[:4], (part.right, part.bottom))] = cv2.GC_PR_BGD
    return part.scaled_labels(guess)


def _scaled(region: Bools, part: Part) -> Picture:
    """1 in a region [H, W] and 0 outside, uint8 [h, w] for the scaled part."""
    return part.scaled_labels(region[part.slices].astype(np.uint8))


def _core(inside: Picture) -> Bools:
    """The innermost pixels of a region [h, w]."""
    cv2: Any = import_module("cv2")  # optional
    # what is beyond the image is outside
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    found: Bools = depth > _CORE * depth.max()
    return found


def _bends_inward(inside: Picture) -> bool:
    """Whether a region [h, w] follows the outline of an object: the middle of a convex one may be background."""
    cv2: Any = import_module("cv2")  # optional
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(outlines))
    return bool(np.count_nonzero(inside) < _CONVEX * cv2.contourArea(hull))


def _restored(guess: Picture, part: Part, size: tuple[int, ...]) -> Bools:
    """The mask [H, W] of a guess [h, w] for a scaled part."""
    mask = np.zeros(size, bool)
    mask[part.slices] = part.restored(is_object(guess))
    return mask


def _ellipse(inside: tuple[int, int, int, int], size: tuple[int, int]) -> Bools:
    """The ellipse inscribed in a box, in an image of W x H; it has a pixel at least."""
    left, top, right, bottom = inside
    y, x = np.ogrid[: size[1], : size[0]]
    across = (2 * x + 1 - left - right) / (right - left)
    down = (2 * y + 1 - top - bottom) / (bottom - top)
    found: Bools = across**2 + down**2 <= 1
    return found
