"""What a correction in the page is worth: J before, and after the worst frame is given and tracked from both ways.

python benchmarks/corrections.py DAVIS --sequence bmx-bumps --sequence hike [--max-size 240] [--clicks 3]

Each sequence is tracked from the annotation of its first frame. Of the frames in which the object has at least 30
pixels, the one with the smallest J is then given, and tracked from backward and forward. With --clicks, not the true
mask is given, but the one that was tracked, corrected by so many clicks in the middle of what is most wrong.
"""

from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import typer

from annotated import Sequence, sequences
from stm_fast import STM, MemoryConfig, load
from stm_fast.clicks.user import next_click
from stm_fast.evaluation import region_similarity
from stm_fast.frame_source import frame_source
from stm_fast.inference.options import RunOptions
from stm_fast.page.project import Project
from stm_fast.page.prompters import make_prompter
from stm_fast.page.prompts import Prompter
from stm_fast.page.tracker import track_project
from stm_fast.printing import percent
from stm_fast.video.image_folder import read_frame

LEAST = 30  # pixels

Bools = npt.NDArray[np.bool_]
Image = npt.NDArray[np.uint8]


class Correction(NamedTuple):
    """What a correction did.

    Attributes:
        worst: the frame that was corrected.
        tracked, given: J there, before and after.
        before, after: the mean J of the sequence.
    """

    worst: int
    tracked: float
    given: float
    before: float
    after: float


def track(project: Project, model: STM, options: RunOptions, start: int, back: bool) -> None:
    """Tracks to the end of the video, or to its start."""
    if start != (0 if back else project.frame_count - 1):
        track_project(project, model, options, start, back, lambda: False, lambda frame: None)


def scores(project: Project, truth: dict[int, npt.NDArray[np.bool_]]) -> dict[int, float]:
    """J of the first object, by frame."""
    return {index: float(region_similarity(project.shown(index) == 1, own)) for index, own in truth.items()}


def clicked(prompter: Prompter, image: Image, shown: Bools, own: Bools, clicks: int) -> Bools:
    """A mask [H, W] after some clicks on what is wrong with it."""
    for _ in range(clicks):
        click = next_click(shown, own)
        if click is None or not (click.add or shown.any()):
            break
        shown = prompter.from_click(image, shown, *click)
    return shown


def before_and_after(
    sequence: Sequence, model: STM, options: RunOptions, folder: Path, clicks: int | None
) -> Correction:
    """Tracks a sequence, corrects its worst frame, and tracks from there."""
    truth = {index: sequence.read(index) == 1 for index in range(len(sequence.frames))}
    truth = {index: own for index, own in truth.items() if own.any()}
    prompter = None if clicks is None else make_prompter("network")
    with Project.open(folder / sequence.name, frame_source(sequence.frames[0].parent)) as project:
        project.add_object()
        project.give(0, 1, truth[0])
        track(project, model, options, 0, False)
        before = scores(project, truth)
        worst = min((i for i, own in truth.items() if np.count_nonzero(own) >= LEAST), key=lambda i: before[i])
        corrected = truth[worst]
        if prompter is not None and clicks is not None:
            image = read_frame(sequence.frames[worst])
            corrected = clicked(prompter, image, project.shown(worst) == 1, truth[worst], clicks)
        project.give(worst, 1, corrected)
        given = float(region_similarity(corrected, truth[worst]))
        for back in (True, False):
            track(project, model, options, worst, back)
        after = mean(scores(project, truth).values())
        return Correction(worst, before[worst], given, mean(before.values()), after)


def main(
    davis: Annotated[Path, typer.Argument(help="With JPEGImages and Annotations.")],
    sequence: Annotated[list[str] | None, typer.Option(help="One of the sequences; can be repeated.")] = None,
    max_size: Annotated[int, typer.Option(help="Larger frames are downscaled for the network.")] = 480,
    clicks: Annotated[int | None, typer.Option(min=0, help="Correct by this many clicks instead.")] = None,
) -> None:
    """Prints a line for each sequence, and the means."""
    model = load(dtype="float32")
    options = RunOptions(MemoryConfig(), max_size, min(max_size, model.min_size or max_size))
    found = []
    with TemporaryDirectory() as folder:
        for one in sequences(davis, sequence or ()):
            done = before_and_after(one, model, options, Path(folder), clicks)
            found.append(done)
            of_frame = f"frame {done.worst} corrected, J {percent(done.tracked)} -> {percent(done.given)}"
            print(f"{one.name}: {of_frame}, mean J {percent(done.before)} -> {percent(done.after)}", flush=True)
    tracked, given, before, after = (percent(mean(values)) for values in list(zip(*found, strict=True))[1:])
    print(f"{len(found)} sequences: J of the frames {tracked} -> {given}, mean J {before} -> {after}")


if __name__ == "__main__":
    typer.run(main)
