"""The mask of an object from a box or a line around it, by GrabCut (Rother et al., SIGGRAPH 2004); clicks correct it.

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
# x and y of its corners
Lasso = Sequence[tuple[float, float]]

# around the box, as a share of its longer side and in pixels: what GrabCut knows to be background
_MARGIN, _MIN_MARGIN = 0.35, 10
# the longer side of the part that GrabCut sees: smaller ones are enlarged, up to this factor, larger ones reduced
_LEAST_SIDE, _MOST_SCALE, _MOST_SIDE = 160, 4, 480
_ROUNDS, _ROUNDS_WITH_CLICKS = 5, 2
_CLICK_RADIUS = 4  # in pixels of that part
_LEAST_CHANGE = 2  # pixels around a click
# how far a click can reach: a share of the square root of the mask's area, and in pixels
_REACH, _LEAST_REACH, _LARGEST_SIDE = 1.0, 24, 240
# of a line that a person draws
MOST_POINTS = 10_000
_SHIFT = 4  # OpenCV draws with 16 steps to a pixel
# an object fills more of its box
_LEAST_SHARE = 0.05
# OpenCV's random numbers and number of threads belong to the process
_one_at_a_time = Lock()


class FirstMask(NamedTuple):
    """The mask of a box or a lasso.

    Attributes:
        mask: bool [H, W].
        found: whether the object was found; otherwise the mask is the ellipse inscribed in the box, or all that the
            lasso encloses.
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
    for point, _ in clicks:
        check_click(point, (width, height))
    inside = _pixels(_extended(box, [point for point, label in clicks if label]), (width, height))
    region = np.zeros((height, width), bool)
    region[inside[1] : inside[3], inside[0] : inside[2]] = True
    found = _by_grabcut(image, region, _with_margin(inside, (width, height)), clicks)
    # clicks may select something small in a large box
    if found.any() and (clicks or np.count_nonzero(found) >= _LEAST_SHARE * np.count_nonzero(region)):
        return FirstMask(found, True)
    return FirstMask(_ellipse(inside, (width, height)), False)


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
    height, width = image.shape[:2]
    region = enclosed(lasso, (width, height))
    found = _by_grabcut(image, region, _with_margin(bounds(region), (width, height)), [])
    if np.count_nonzero(found) >= _LEAST_SHARE * np.count_nonzero(region):
        return FirstMask(found, True)
    return FirstMask(region, False)


def corrected(image: Picture, shown: Bools, point: tuple[float, float], add: bool) -> Bools:
    """A mask, corrected around a click: always the same for the same image, mask and click.

    Args:
        image: uint8 [H, W, 3] RGB.
        shown: bool [H, W], the mask to be corrected.
        point: x and y of the click, in the image.
        add: whether the object is missing there; otherwise the mask is too large there.

    Returns:
        bool [H, W]. Pixels are only added, or only taken away: one connected region, which contains the click.

    Raises:
        InputError: OpenCV is missing, or the click is outside the image.
    """
    require_opencv()
    check_click(point, (image.shape[1], image.shape[0]))
    changed = _around_click(image, shown, point, add)
    return shown | changed if add else shown & ~changed


def _around_click(image: Picture, shown: Bools, point: tuple[float, float], add: bool) -> Bools:
    """What a click changes, bool [H, W]."""
    cv2: Any = import_module("cv2")  # optional
    height, width = shown.shape
    x, y = int(point[0]), int(point[1])
    reach = max(_LEAST_REACH, int(_REACH * np.sqrt(np.count_nonzero(shown))))
    left, top, right, bottom = (
        max(x - reach, 0),
        max(y - reach, 0),
        min(x + reach + 1, width),
        min(y + reach + 1, height),
    )
    near = shown[top:bottom, left:right]
    scale = min(_MOST_SCALE, max(1, _LEAST_SIDE / (2 * reach)), _LARGEST_SIDE / (2 * reach))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture = cv2.resize(np.ascontiguousarray(image[top:bottom, left:right]), size, interpolation=how)
    small = cv2.resize(near.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    guess = np.where(small, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_PR_BGD))
    place = round((point[0] - left) * scale - 0.5), round((point[1] - top) * scale - 0.5)
    cv2.circle(guess, place, _CLICK_RADIUS, cv2.GC_FGD if add else cv2.GC_BGD, cv2.FILLED)
    with _one_at_a_time:
        _grabcut(picture, guess, _ROUNDS_WITH_CLICKS)
    now = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD))
    flipped = (now & (small == 0) if add else ~now & (small > 0)).astype(np.uint8)
    wanted = np.zeros_like(shown)
    wanted[top:bottom, left:right] = cv2.resize(flipped, near.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return connected_change(wanted, point)


def connected_change(wanted: Bools, point: tuple[float, float]) -> Bools:
    """Of a change, bool [H, W], the connected region around a click; at least a disk, so that no click is lost."""
    cv2: Any = import_module("cv2")  # optional
    place = int(point[0]), int(point[1])
    marked = cv2.circle(wanted.astype(np.uint8), place, _LEAST_CHANGE, 1, cv2.FILLED)
    _, labels = cv2.connectedComponents(marked, connectivity=4)
    changed: Bools = labels == labels[place[1], place[0]]
    return changed


def check_click(point: tuple[float, float], size: tuple[int, int]) -> None:
    """Raises InputError if a click is outside an image of W x H."""
    if not (0 <= point[0] < size[0] and 0 <= point[1] < size[1]):
        expected = f"expected one inside the frame of {size[0]}x{size[1]}"
        raise InputError(f"found a click at {point[0]:g}, {point[1]:g}, {expected}")


def ellipse_in(box: Box, size: tuple[int, int]) -> Bools:
    """The ellipse inscribed in a box, bool [H, W], in an image of W x H. Raises InputError as `check_box`."""
    check_box(box, size)
    return _ellipse(_pixels(box, size), size)


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


def bounds(mask: Bools) -> tuple[int, int, int, int]:
    """The first column and row of a mask [H, W] that is not empty, and the first ones after it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


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
    region: Bools,
    part: tuple[int, int, int, int],
    clicks: list[tuple[tuple[float, float], int]],
) -> Bools:
    """The mask [H, W] that GrabCut finds in a part of the image; the object is inside a region [H, W]."""
    cv2: Any = import_module("cv2")  # optional
    left, top, right, bottom = part
    side = max(right - left, bottom - top)
    scale = min(_MOST_SCALE, max(1, _LEAST_SIDE / side), _MOST_SIDE / side)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture = cv2.resize(np.ascontiguousarray(image[top:bottom, left:right]), size, interpolation=how)
    inside = region[top:bottom, left:right]
    guess = np.where(inside, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_BGD))
    if inside.all():  # the whole image: no background is known
        guess[~_ellipse(part, (right, bottom))] = cv2.GC_PR_BGD
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
