"""The videos of a command: which masks and which output folder belong to which, and what is done with that."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from stm_fast.choices import Overlay
from stm_fast.errors import InputError, check_name
from stm_fast.listing import mask_of
from stm_fast.runs.output_folder import check_apart


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
            raise InputError(f"overlay: found {self.overlay!r}, expected one of {', '.join(get_args(Overlay))}")


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
