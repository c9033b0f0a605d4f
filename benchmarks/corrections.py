"""What a correction in the page is worth: J before, and after the worst frame is given and tracked from both ways.

python benchmarks/corrections.py DAVIS --sequence bmx-bumps --sequence hike [--max-size 240]

Each sequence is tracked from the annotation of its first frame. Of the frames in which the object has at least 30
pixels, the one with the smallest J is then given, and tracked from backward and forward.
"""

from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from annotated import Sequence, sequences
from stm_fast import STM, MemoryConfig, load
from stm_fast.evaluation import region_similarity
from stm_fast.frame_source import frame_source
from stm_fast.inference.options import RunOptions
from stm_fast.page.project import Project
from stm_fast.page.tracker import track_project
from stm_fast.printing import percent

LEAST = 30  # pixels


def track(project: Project, model: STM, options: RunOptions, start: int, back: bool) -> None:
    """Tracks to the end of the video, or to its start."""
    if start != (0 if back else project.frame_count - 1):
        track_project(project, model, options, start, back, lambda: False, lambda frame: None)


def scores(project: Project, truth: dict[int, npt.NDArray[np.bool_]]) -> dict[int, float]:
    """J of the first object, by frame."""
    return {index: float(region_similarity(project.shown(index) == 1, own)) for index, own in truth.items()}


def before_and_after(sequence: Sequence, model: STM, options: RunOptions, folder: Path) -> tuple[int, float, float]:
    """The corrected frame, and the mean J before and after."""
    truth = {index: sequence.read(index) == 1 for index in range(len(sequence.frames))}
    truth = {index: own for index, own in truth.items() if own.any()}
    with Project.open(folder / sequence.name, frame_source(sequence.frames[0].parent)) as project:
        project.add_object()
        project.give(0, 1, truth[0])
        track(project, model, options, 0, False)
        before = scores(project, truth)
        worst = min((i for i, own in truth.items() if np.count_nonzero(own) >= LEAST), key=lambda i: before[i])
        project.give(worst, 1, truth[worst])
        for back in (True, False):
            track(project, model, options, worst, back)
        return worst, mean(before.values()), mean(scores(project, truth).values())


def main(
    davis: Annotated[Path, typer.Argument(help="With JPEGImages and Annotations.")],
    sequence: Annotated[list[str] | None, typer.Option(help="One of the sequences; can be repeated.")] = None,
    max_size: Annotated[int, typer.Option(help="Larger frames are downscaled for the network.")] = 480,
) -> None:
    """Prints a line for each sequence, and the means."""
    model = load(dtype="float32")
    options = RunOptions(MemoryConfig(), max_size, min(max_size, model.min_size or max_size))
    found = []
    with TemporaryDirectory() as folder:
        for one in sequences(davis, sequence or ()):
            found.append(before_and_after(one, model, options, Path(folder)))
            worst, before, after = found[-1]
            print(f"{one.name}: frame {worst} corrected, mean J {percent(before)} -> {percent(after)}", flush=True)
    _, befores, afters = zip(*found, strict=True)
    print(f"{len(found)} sequences: mean J {percent(mean(befores))} -> {percent(mean(afters))}")


if __name__ == "__main__":
    typer.run(main)
