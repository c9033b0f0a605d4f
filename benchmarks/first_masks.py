"""J of first masks, and of their corrections, on the first annotated frame of each sequence of data sets like DAVIS.

python benchmarks/first_masks.py DAVIS [MORE...] [--prompter grabcut] [--held-out]

The box of each object is that of its annotation, three pixels larger on each side. Its lasso is the outline of the
annotation, 4 % of the frame's shorter side outside, and coarse; its loop is the convex hull of the lasso. A click is in
the middle of what is wrong: the pixel that is farthest inside the missing or the superfluous part of the mask. With
`click`, there is no region, and the first click makes the mask.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import typer

from annotated import sequences
from stm_fast.choices import PrompterName
from stm_fast.clicks.regions import Region
from stm_fast.clicks.user import Corners, box_around, hull_of, line_around, next_click, points_of
from stm_fast.evaluation import region_similarity
from stm_fast.page.prompters import make_prompter
from stm_fast.page.prompts import Prompter
from stm_fast.printing import percent
from stm_fast.training.clicks import HELD_OUT as OF_DAVIS
from stm_fast.video import object_ids
from stm_fast.video.image_folder import read_frame

Bools = npt.NDArray[np.bool_]
MARGIN = 3  # pixels
LASSO_MARGIN = 0.04  # of the shorter side
CLICKS = (0, 1, 3, 5, 8)
GOOD = 0.8
# what the package's click network has not seen in training: of DAVIS-2016 train, and four other clips
HELD_OUT = (*OF_DAVIS, "bike", "caps", "chair", "judo")


class Corrected(NamedTuple):
    """What happened to one object: J after each number of clicks, and the seconds that each mask took."""

    values: list[float]
    seconds: list[float]


def objects(root: Path, names: Collection[str] = ()) -> Iterator[tuple[npt.NDArray[np.uint8], Bools]]:
    """The first frames, of all sequences or of these, each with the mask of one of its objects."""
    for sequence in sequences(root, names):
        image, truth = read_frame(sequence.frames[0]), sequence.read(0)
        for object_id in object_ids(truth):
            yield image, truth == object_id


def corrections(prompter: Prompter, image: npt.NDArray[np.uint8], own: Bools, region: Region | None) -> Corrected:
    """The first mask of a region, or of nothing, and its corrections."""
    start = perf_counter()
    shown = np.zeros_like(own) if region is None else prompter.from_region(image, region).mask
    values, seconds = [float(region_similarity(shown, own))], [perf_counter() - start]
    for _ in range(CLICKS[-1]):
        click = next_click(shown, own)
        if click is not None:
            start = perf_counter()
            shown = prompter.from_click(image, shown, *click)
            seconds.append(perf_counter() - start)
        values.append(float(region_similarity(shown, own)))
    return Corrected(values, seconds)


def lasso_around(own: Bools) -> Corners:
    """A loose line around an object [H, W]."""
    return line_around(own, max(1, round(LASSO_MARGIN * min(own.shape))))


REGIONS: dict[str, Callable[[Bools], Region | None]] = {
    "box": lambda own: Region(box_around(own, MARGIN)),
    "lasso": lambda own: Region(lasso=points_of(lasso_around(own))),
    "loop": lambda own: Region(lasso=points_of(hull_of(lasso_around(own)))),
    "click": lambda own: None,
}


def table(roots: list[Path], prompter: Prompter, names: Collection[str] = ()) -> Iterator[str]:
    """The lines of a table: a row for each kind of region and number of clicks."""
    yield "region  clicks  mean J  median  J >= 80  worst  median ms  slowest ms"
    for kind, region_of in REGIONS.items():
        if kind == "click" and not prompter.clicks_alone:
            continue
        pairs = (one for root in roots for one in objects(root, names))
        found = [corrections(prompter, image, own, region_of(own)) for image, own in pairs]
        if not found:
            raise typer.BadParameter("found no such sequence, expected some in JPEGImages and Annotations")
        for clicks in CLICKS:
            values = [one.values[clicks] for one in found]
            times = [1000 * one.seconds[clicks] for one in found if clicks < len(one.seconds)] or [0.0]
            good = percent(mean(value >= GOOD for value in values))
            figures = f"{percent(mean(values)):>6}  {percent(median(values)):>6}  {good:>7}  {percent(min(values)):>5}"
            yield f"{kind:6}  {clicks:6}  {figures}  {median(times):9.0f}  {max(times):10.0f}"


def main(
    roots: Annotated[list[Path], typer.Argument(help="With JPEGImages and Annotations, as in DAVIS.")],
    prompter: Annotated[PrompterName, typer.Option(help="What makes the masks.")] = "network",
    held_out: Annotated[bool, typer.Option("--held-out", help="Only what the network has not seen.")] = False,
) -> None:
    """Prints J in percent after each number of clicks, and the milliseconds that the last mask took."""
    for line in table(roots, make_prompter(prompter), HELD_OUT if held_out else ()):
        print(line)


if __name__ == "__main__":
    typer.run(main)
