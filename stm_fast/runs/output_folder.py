"""Videos and their output folders: which belong together, what belongs to a run, and whether one may begin there."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from stm_fast.choices import Overlay
from stm_fast.errors import InputError, check_name, option, reading
from stm_fast.listing import mask_of
from stm_fast.whole_file import LEFT_OVER, refuse_links, writing

# of the checkpoint, see `checkpoint`
RECORD = ".resume.json"
STATES = ".resume-*.safetensors"
# how sure the network was of each object in each frame, see `score_table`
SCORES = "scores.csv"
START_AGAIN = f"start again with {option('overwrite', True)}"
# in a chain: beyond that Linux calls it a loop
_MOST_LINKS = 40


@dataclass(frozen=True)
class OutputOptions:
    """What is done with an output folder, as :func:`stm_fast.segment_video` explains.

    Raises InputError where there is no such overlay.
    """

    overlay: Overlay = "video"
    overwrite: bool = False
    resume: bool = False
    checkpoint_seconds: float = 60.0
    leave_record: bool = False

    def __post_init__(self) -> None:
        if self.overlay not in get_args(Overlay):
            raise InputError(
                f"{option('overlay')}: found {self.overlay!r}, expected one of {', '.join(get_args(Overlay))}"
            )


class Job(NamedTuple):
    """One video with its masks and the folder of its results."""

    source: Path
    masks: Path  # of many videos, the folder that has those of each
    output: Path
    mask_frame: int | str | None = None  # that a single mask belongs to; None for what its name says

    @property
    def name(self) -> str:
        """Of the video."""
        path = self.source
        return os.path.basename(os.path.realpath(path)) if path.is_dir() else path.stem

    def with_own_masks(self) -> "Job":
        """One of many videos, with its own masks: ``masks/<name>.png``, another picture or the folder ``masks/<name>``.

        Raises:
            InputError: there is neither, or two pictures.
        """
        for path in (mask_of(self.masks, self.name), self.masks / self.name):
            if path.exists():
                return self._replace(masks=path)
        raise InputError(f"{self.masks}: no masks for {self.source}, expected {self.name}.png or a folder {self.name}")


def plan(sources: Sequence[Path], masks: Path, output: Path) -> list[Job]:
    """Each video with its own folder of results in `output`; a single one has all of it.

    Raises:
        InputError: two have the same folder, or one has no name.
    """
    if len(sources) == 1:
        return [Job(sources[0], masks, output)]
    jobs: dict[str, Job] = {}
    for source in sources:
        job = Job(source, masks, output)
        job = job._replace(output=output / check_name(job.name, f"{source}: name of its results"))
        # links may lead two names to one folder
        twin = jobs.setdefault(os.path.realpath(job.output), job)
        if twin is not job:
            same = "name" if twin.name == job.name else "folder"
            raise InputError(
                f"{source}: same {same} as {twin.source}, so the results of both would be in {twin.output}"
            )
    return list(jobs.values())


def check_inputs(jobs: Sequence[Job]) -> None:
    """Raises InputError where the results of one of many videos would replace the input of another."""
    inputs = [job.source for job in jobs]
    for job in jobs:
        with suppress(InputError):  # a video without masks is reported when it is its turn
            inputs.append(job.with_own_masks().masks)
    check_apart([job.output for job in jobs], inputs)


def check_output(folder: Path, overwrite: bool, inputs: Iterable[Path] = (), *, resume: bool = False) -> None:
    """Raises InputError where the folder holds anything that may not be overwritten, or an input.

    The folder may be a link, which its user has made, as to another disk. What a run creates inside it may not.

    Args:
        resume: an interrupted run in the folder may be resumed, and is no obstacle.
    """
    with reading(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            found = "a file" if folder.exists() else "a link that leads nowhere"
            raise InputError(f"{folder}: found {found}, expected an output folder")
        refuse_links(*parts_of(folder))
        check_apart([folder], inputs)
        if overwrite or not _holds_anything(folder):
            return
        recorded = (folder / RECORD).exists()
    if recorded and not resume:
        continues, replaces = option("resume", True), option("overwrite", True)
        raise InputError(f"{folder}: holds a run; {continues} continues it, {replaces} starts again")
    if not recorded:
        why = "not empty, and holds no interrupted run" if resume else "not empty"
        raise InputError(f"{folder}: the output folder is {why}; give another one, or {option('overwrite', True)}")


def check_apart(folders: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises InputError where a folder of results holds an input, or a file of one, directly or behind a link.

    Earlier results are removed, and the input would be one of them.
    """
    outputs = {Path(os.path.realpath(folder)): folder for folder in folders}
    for path in inputs:
        with reading(path):
            places = [(file, place) for file in (path, *_links_in(path)) for place in _places(file)]
        for file, place in places:
            for above in (place, *place.parents):
                if above in outputs:
                    raise InputError(f"{outputs[above]}: the output folder holds the input {file}; give another one")


def remove_results(folder: Path) -> None:
    """Removes what a run left there, its checkpoint too. Raises InputError where that is not possible."""
    with writing(folder):
        for earlier in (folder / RECORD, *folder.glob(STATES)):
            earlier.unlink(missing_ok=True)
        remove_earlier(folder)
        for part in parts_of(folder):
            with suppress(OSError):  # not there, or the user has put something in it
                part.rmdir()


def remove_earlier(folder: Path) -> None:
    """Removes earlier masks, overlays and scores."""
    masks, overlay = parts_of(folder)
    for earlier in (*masks.glob("*.png"), *overlay.glob("*.jpg"), folder / "overlay.mp4", folder / SCORES):
        earlier.unlink(missing_ok=True)


def parts_of(folder: Path) -> tuple[Path, Path]:
    """The folders of masks and of overlays."""
    return folder / "masks", folder / "overlay"


def _holds_anything(folder: Path) -> bool:
    """Whether there is more in it than what a process that was killed had not finished."""
    return folder.is_dir() and any(not path.match(LEFT_OVER) for path in folder.iterdir())


def _places(path: Path) -> Iterator[Path]:
    """Where a path lies, and where it leads, link by link."""
    for _ in range(_MOST_LINKS):
        # a ".." is left only at the end, behind what is no link
        path = Path(os.path.normpath(os.path.realpath(path.parent) + os.sep + path.name))
        yield path
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()


def _links_in(folder: Path) -> Iterator[Path]:
    """The entries of a folder that are links."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (folder / entry.name for entry in entries if entry.is_symlink())
