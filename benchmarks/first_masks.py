"""J of the masks that GrabCut makes of boxes, on the first annotated frame of each sequence of data sets like DAVIS.

python benchmarks/first_masks.py DAVIS [MORE...]

The box of each object is that of its annotation, three pixels larger on each side.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from annotated import sequences
from stm_fast.evaluation import region_similarity
from stm_fast.printing import percent
from stm_fast.video import object_ids
from stm_fast.video.first_mask import Box, find_first_mask
from stm_fast.video.image_folder import read_frame

MARGIN = 3  # pixels


def box_around(own: npt.NDArray[np.bool_]) -> Box:
    """The box of an object [H, W], with the margin, inside the image."""
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    top, left = max(rows[0] - MARGIN, 0), max(columns[0] - MARGIN, 0)
    bottom, right = min(rows[-1] + MARGIN + 1, own.shape[0]), min(columns[-1] + MARGIN + 1, own.shape[1])
    return Box(left, top, right - left, bottom - top)


def scores(root: Path) -> Iterator[tuple[float, bool]]:
    """For each object: J, and whether GrabCut found it."""
    for sequence in sequences(root):
        image, truth = read_frame(sequence.frames[0]), sequence.read(0)
        for object_id in object_ids(truth):
            own = truth == object_id
            found = find_first_mask(image, box_around(own))
            yield float(region_similarity(found.mask, own)), found.found


def main(roots: Annotated[list[Path], typer.Argument(help="With JPEGImages and Annotations, as in DAVIS.")]) -> None:
    """Prints the mean and the median in percent, and how often the ellipse took GrabCut's place."""
    found = [score for root in roots for score in scores(root)]
    values, ellipses = [value for value, _ in found], sum(not by_grabcut for _, by_grabcut in found)
    print(
        f"{len(found)} objects: mean J {percent(mean(values))}, median {percent(median(values))}, {ellipses} ellipses"
    )


if __name__ == "__main__":
    typer.run(main)
