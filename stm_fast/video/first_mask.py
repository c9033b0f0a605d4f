"""The mask of an object from a box around it, by GrabCut (Rother et al., SIGGRAPH 2004); clicks correct it.

H x W pixels; places x, y are in pixels from the upper left corner of the image.
"""

from collections.abc import Sequence
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.boxes import Box
from stm_fast.errors import InputError, reason_of

__all__ = ["Box", "FirstMask", "check_box", "find_first_mask", "mask_from_box", "require_opencv"]

Bools = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]

# around the box, as a share of its longer side and in pixels: what GrabCut knows to be background
_MARGIN, _MIN_MARGIN = 0.35, 10
# the longer side of the part that GrabCut sees: smaller ones are enlarged, up to this factor, larger ones reduced
_LEAST_SIDE, _MOST_SCALE, _MOST_SIDE = 160, 4, 480
_ROUNDS, _ROUNDS_WITH_CLICKS = 5, 2
_CLICK_RADIUS = 4  # in pixels of that part
# an object fills more of its box
_LEAST_SHARE = 0.05
# OpenCV's random numbers and number of threads belong to the process
_one_at_a_time = Lock()


class FirstMask(NamedTuple):
    """The mask of a box.

    Attributes:
        mask: bool [H, W].
        found: whether GrabCut found the object; otherwise the mask is the ellipse inscribed in the box.
    """

    mask: Bools
    found: bool


def require_opencv() -> None:
    """Raises InputError, which says how to install it, if OpenCV cannot be imported."""
    try:
        import_module("cv2")
    except ImportError as error:  # also of a library that it needs, such as libGL
        why = f"a mask from a box needs OpenCV, which cannot be imported ({reason_of(error)})"
        raise InputError(f"{why}: pip install 'stm_fast[boxes]'") from error


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


def mask_from_box(
    image: Picture, box: Box, points: Sequence[tuple[float, float]] = (), labels: Sequence[int] = ()
) -> Bools:
    """The mask of the object in a box: always the same for the same image, box and clicks.

    Args:
        image: uint8 [H, W, 3] RGB.
        box: around the object; parts outside the image are ignored.
        points: clicks, x and y. One on the object may be outside the box, which is then extended to it.
        labels: of each click, 1 on the object, 0 on the background.

    Returns:
        bool [H, W], never empty. If GrabCut finds nothing, the ellipse inscribed in the box.

    Raises:
        InputError: OpenCV is missing, the box has no pixel in the image, or a click is outside the image.
        ValueError: not one label for each click.
    """
    return find_first_mask(image, box, points, labels).mask


def find_first_mask(
    image: Picture, box: Box, points: Sequence[tuple[float, float]] = (), labels: Sequence[int] = ()
) -> FirstMask:
    """`mask_from_box`, and whether GrabCut found the object."""
    require_opencv()
    height, width = image.shape[:2]
    check_box(box, (width, height))
    clicks = list(zip(points, labels, strict=True))
    for (x, y), _ in clicks:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"found a click at {x:g}, {y:g}, expected one inside the frame of {width}x{height}")
    inside = _pixels(_extended(box, [point for point, label in clicks if label]), (width, height))
    part = _with_margin(inside, (width, height))
    found = _by_grabcut(image, inside, part, clicks)
    least = _LEAST_SHARE * (inside[2] - inside[0]) * (inside[3] - inside[1])
    # clicks may select something small in a large box
    if found.any() and (clicks or np.count_nonzero(found) >= least):
        return FirstMask(found, True)
    return FirstMask(_ellipse(inside, (width, height)), False)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first column and row of a box in an image of W x H, and the first ones after it."""
    left, top = max(box.x, 0), max(box.y, 0)
    right, bottom = min(box.x + box.width, size[0]), min(box.y + box.height, size[1])
    # a box narrower than a pixel keeps the pixel that it is in
    return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))


def _extended(box: Box, points: list[tuple[float, float]]) -> Box:
    """The smallest box around a box and points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top = min([box.x, *xs]), min([box.y, *ys])
    right, bottom = max([box.x + box.width, *(x + 1 for x in xs)]), max([box.y + box.height, *(y + 1 for y in ys)])
    return Box(left, top, right - left, bottom - top)


def _with_margin(inside: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = inside
    margin = max(_MIN_MARGIN, int(_MARGIN * max(right - left, bottom - top)))
    return max(left - margin, 0), max(top - margin, 0), min(right + margin, size[0]), min(bottom + margin, size[1])


def _by_grabcut(
    image: Picture,
    inside: tuple[int, int, int, int],
    part: tuple[int, int, int, int],
    clicks: list[tuple[tuple[float, float], int]],
) -> Bools:
    """The mask [H, W] that GrabCut finds in a part of the image."""
    cv2: Any = import_module("cv2")  # optional
    left, top, right, bottom = part
    side = max(right - left, bottom - top)
    scale = min(_MOST_SCALE, max(1, _LEAST_SIDE / side), _MOST_SIDE / side)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture = cv2.resize(np.ascontiguousarray(image[top:bottom, left:right]), size, interpolation=how)
    guess = np.full((bottom - top, right - left), cv2.GC_BGD, np.uint8)
    guess[inside[1] - top : inside[3] - top, inside[0] - left : inside[2] - left] = cv2.GC_PR_FGD
    if inside == part:  # the whole image: no background is known
        guess[~_ellipse(inside, (right, bottom))] = cv2.GC_PR_BGD
    guess = cv2.resize(guess, size, interpolation=cv2.INTER_NEAREST)
    with _one_at_a_time:
        _grabcut(picture, guess, _ROUNDS)
        if clicks:
            for (x, y), label in clicks:
                place = round((x + 0.5 - left) * scale - 0.5), round((y + 0.5 - top) * scale - 0.5)
                cv2.circle(guess, place, _CLICK_RADIUS, cv2.GC_FGD if label else cv2.GC_BGD, cv2.FILLED)
            _grabcut(picture, guess, _ROUNDS_WITH_CLICKS)
    chosen = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    mask = np.zeros(image.shape[:2], bool)
    mask[top:bottom, left:right] = cv2.resize(chosen, (right - left, bottom - top), interpolation=cv2.INTER_AREA) > 0.5
    return mask


def _grabcut(picture: Picture, guess: Picture, rounds: int) -> None:
    """Improves the guess [h, w] in place; if one of its two classes is empty, nothing is an object."""
    cv2: Any = import_module("cv2")  # optional
    foreground = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if foreground.all() or not foreground.any():
        return
    threads = cv2.getNumThreads()
    cv2.setRNGSeed(0)
    cv2.setNumThreads(1)  # the sums of several depend on their number
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(np.ascontiguousarray(picture[..., ::-1]), guess, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    finally:
        cv2.setNumThreads(threads)


def _ellipse(inside: tuple[int, int, int, int], size: tuple[int, int]) -> Bools:
    """The ellipse inscribed in a box, in an image of W x H; it has a pixel at least."""
    left, top, right, bottom = inside
    y, x = np.ogrid[: size[1], : size[0]]
    across = (2 * x + 1 - left - right) / (right - left)
    down = (2 * y + 1 - top - bottom) / (bottom - top)
    found: Bools = across**2 + down**2 <= 1
    return found
