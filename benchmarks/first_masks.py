"""J of first masks, and of their corrections, on the first annotated frame of each sequence of data sets like DAVIS.

python benchmarks/first_masks.py DAVIS [MORE...]
python benchmarks/first_masks.py DAVIS [MORE...] --clicks

The box of each object is that of its annotation, three pixels larger on each side. Its lasso is the outline of the
annotation, 4 % of the frame's shorter side outside, and coarse; its loop is the convex hull of the lasso. A click is in
the middle of what is wrong: the pixel that is farthest inside the missing or the superfluous part of the mask.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import typer

from annotated import sequences
from stm_fast.evaluation import region_similarity
from stm_fast.page.prompts import GrabCut, Point, Region
from stm_fast.printing import percent
from stm_fast.video import object_ids
from stm_fast.video.first_mask import Box, find_first_mask
from stm_fast.video.image_folder import read_frame

Bools = npt.NDArray[np.bool_]
MARGIN = 3  # pixels
LASSO_MARGIN = 0.04  # of the shorter side
CLICKS = (0, 1, 3, 5, 8)
GOOD = 0.8


class Click(NamedTuple):
    """Where a user clicks, and whether something is missing there."""

    point: Point
    add: bool


class Corrected(NamedTuple):
    """What happened to one object: J after each number of clicks, and the seconds that each mask took."""

    values: list[float]
    seconds: list[float]


def objects(root: Path) -> Iterator[tuple[npt.NDArray[np.uint8], Bools]]:
    """The first frames, each with the mask of one of its objects."""
    for sequence in sequences(root):
        image, truth = read_frame(sequence.frames[0]), sequence.read(0)
        for object_id in object_ids(truth):
            yield image, truth == object_id


def box_around(own: Bools) -> Box:
    """The box of an object [H, W], with the margin, inside the image."""
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    top, left = max(rows[0] - MARGIN, 0), max(columns[0] - MARGIN, 0)
    bottom, right = min(rows[-1] + MARGIN + 1, own.shape[0]), min(columns[-1] + MARGIN + 1, own.shape[1])
    return Box(left, top, right - left, bottom - top)


def lasso_around(own: Bools) -> tuple[Point, ...]:
    """A loose line around an object [H, W], or around all its parts."""
    cv2: Any = import_module("cv2")  # optional
    margin = max(1, round(LASSO_MARGIN * min(own.shape)))
    pad = 4 * margin
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    grown = cv2.dilate(np.pad(own.astype(np.uint8), pad), disk)
    smooth = cv2.morphologyEx(grown, cv2.MORPH_CLOSE, disk)
    outlines, _ = cv2.findContours(smooth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = outlines[0] if len(outlines) == 1 else cv2.convexHull(np.concatenate(outlines))
    corners = cv2.approxPolyDP(outline, margin / 3, True).reshape(-1, 2) - pad + 0.5
    return tuple((float(x), float(y)) for x, y in corners)


def loop_around(own: Bools) -> tuple[Point, ...]:
    """A line around an object [H, W] that does not follow its outline."""
    cv2: Any = import_module("cv2")  # optional
    corners = cv2.convexHull(np.asarray(lasso_around(own), np.float32)).reshape(-1, 2)
    return tuple((float(x), float(y)) for x, y in corners)


def next_click(shown: Bools, own: Bools) -> Click | None:
    """In the middle of what is wrong with a mask [H, W]; None if nothing is."""
    cv2: Any = import_module("cv2")  # optional
    depths = [
        cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        for wrong in (shown & ~own, own & ~shown)
    ]
    add = bool(depths[1].max() >= depths[0].max())
    y, x = np.unravel_index(depths[add].argmax(), own.shape)
    return Click((x + 0.5, y + 0.5), add) if depths[add][y, x] > 0 else None


def corrections(image: npt.NDArray[np.uint8], own: Bools, region: Region) -> Corrected:
    """The first mask of a region, and its corrections."""
    prompter, start = GrabCut(), perf_counter()
    shown = prompter.from_region(image, region).mask
    values, seconds = [float(region_similarity(shown, own))], [perf_counter() - start]
    for _ in range(CLICKS[-1]):
        click = next_click(shown, own)
        if click is not None:
            start = perf_counter()
            shown = prompter.from_click(image, shown, *click)
            seconds.append(perf_counter() - start)
        values.append(float(region_similarity(shown, own)))
    return Corrected(values, seconds)


REGIONS: dict[str, Callable[[Bools], Region]] = {
    "box": lambda own: Region(box_around(own), ()),
    "lasso": lambda own: Region(None, lasso_around(own)),
    "loop": lambda own: Region(None, loop_around(own)),
}


def scores(root: Path) -> Iterator[tuple[float, bool]]:
    """For each object: J, and whether GrabCut found it."""
    for image, own in objects(root):
        found = find_first_mask(image, box_around(own))
        yield float(region_similarity(found.mask, own)), found.found


def table(roots: list[Path]) -> Iterator[str]:
    """The lines of a table: a row for each kind of region and number of clicks."""
    yield "region  clicks  mean J  median  J >= 80  worst  median ms  slowest ms"
    for kind, region_of in REGIONS.items():
        pairs = (one for root in roots for one in objects(root))
        found = [corrections(image, own, region_of(own)) for image, own in pairs]
        for clicks in CLICKS:
            values = [one.values[clicks] for one in found]
            times = [1000 * one.seconds[clicks] for one in found if clicks < len(one.seconds)] or [0.0]
            good = percent(mean(value >= GOOD for value in values))
            figures = f"{percent(mean(values)):>6}  {percent(median(values)):>6}  {good:>7}  {percent(min(values)):>5}"
            yield f"{kind:6}  {clicks:6}  {figures}  {median(times):9.0f}  {max(times):10.0f}"


def main(
    roots: Annotated[list[Path], typer.Argument(help="With JPEGImages and Annotations, as in DAVIS.")],
    clicks: Annotated[bool, typer.Option("--clicks", help="The page's masks of boxes and lassos, and clicks.")] = False,
) -> None:
    """Prints the mean and the median in percent, and how often the ellipse took GrabCut's place."""
    if clicks:
        for line in table(roots):
            print(line)
        return
    found = [score for root in roots for score in scores(root)]
    values, ellipses = [value for value, _ in found], sum(not by_grabcut for _, by_grabcut in found)
    print(
        f"{len(found)} objects: mean J {percent(mean(values))}, median {percent(median(values))}, {ellipses} ellipses"
    )


if __name__ == "__main__":
    typer.run(main)
