"""Many videos with a folder of masks and a folder of results: which belongs to which."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, check_name


class Job(NamedTuple):
    """One of many videos."""

    name: str
    source: Path
    output: Path


def plan(sources: Sequence[Path], output: Path) -> list[Job]:
    """Each video with its own folder of results. Raises InputError where two have the same name, or one has none."""
    jobs: dict[str, Job] = {}
    for source in sources:
        name = check_name(source.resolve().name if source.is_dir() else source.stem, f"{source}: name of its results")
        twin = jobs.setdefault(name, Job(name, source, output / name))
        if twin.source is not source:
            raise InputError(f"{source}: same name as {twin.source}, so the results of both would be in {twin.output}")
    return list(jobs.values())


def masks_of(job: Job, masks: Path) -> Path:
    """The masks of one video: ``masks/<name>.png`` for its first frame, or the folder ``masks/<name>``.

    Raises:
        InputError: there is neither.
    """
    for path in (masks / f"{job.name}.png", masks / job.name):
        if path.exists():
            return path
    raise InputError(f"{masks}: no masks for {job.source}, expected {job.name}.png or a folder {job.name}")
