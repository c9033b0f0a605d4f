"""Many videos with a folder of masks and a folder of results: which belongs to which."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, check_name
from stm_fast.inference.output_folder import check_apart
from stm_fast.listing import mask_of


class Job(NamedTuple):
    """One of many videos."""

    name: str
    source: Path
    output: Path


def plan(sources: Sequence[Path], output: Path) -> list[Job]:
    """Each video with its own folder of results in `output`; a single one has all of it.

    Raises:
        InputError: two have the same folder, or one has no name.
    """
    if len(sources) == 1:
        return [Job(_name(sources[0]), sources[0], output)]
    jobs: dict[str, Job] = {}
    for source in sources:
        name = check_name(_name(source), f"{source}: name of its results")
        # links may lead two names to one folder
        job = Job(name, source, output / name)
        twin = jobs.setdefault(os.path.realpath(job.output), job)
        if twin is not job:
            same = "name" if twin.name == name else "folder"
            raise InputError(
                f"{source}: same {same} as {twin.source}, so the results of both would be in {twin.output}"
            )
    return list(jobs.values())


def check_inputs(jobs: Sequence[Job], masks: Path) -> None:
    """Raises InputError where the results of one video would take the place of the input of another."""
    inputs = [job.source for job in jobs]
    for job in jobs:
        with suppress(InputError):  # there is none: its own turn tells
            inputs.append(masks_of(job, masks))
    check_apart([job.output for job in jobs], inputs)


def masks_of(job: Job, masks: Path) -> Path:
    """The masks of one video: ``masks/<name>.png`` or another picture, or the folder ``masks/<name>``.

    Raises:
        InputError: there is neither, or two pictures.
    """
    for path in (mask_of(masks, job.name), masks / job.name):
        if path.exists():
            return path
    raise InputError(f"{masks}: no masks for {job.source}, expected {job.name}.png or a folder {job.name}")


def _name(source: Path) -> str:
    return os.path.basename(os.path.realpath(source)) if source.is_dir() else source.stem
