"""Videos and their output folders: which belong together, and whether a run may write there."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stm_fast.boxes import Boxes
from stm_fast.choices import DEFAULT_RESULTS, RESULTS, Result
from stm_fast.errors import InputError, check_name, option, reading, shown
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.listing import is_image, mask_among, mask_of
from stm_fast.store import StoreUrl, entries_in, facts_of, objects_in, place_of, remove
from stm_fast.whole_file import LEFT_OVER, refuse_links, writing

if TYPE_CHECKING:
    from stm_fast.runs.mask_sources import Masks

# of the checkpoint, see `checkpoint`
RECORD = ".resume.json"
STATES = ".resume-*.safetensors"
# see `object_table`
TABLE = "objects.csv"
RUN = "run.json"  # see `write_run_record`
# 8-bit mattes of a run's frames, kept until its videos are complete
MATTES = ".matte"
VIDEOS: dict[Result, str] = {
    "overlay": "overlay.mp4",
    "matte": "matte.mp4",
    "alpha": "alpha.mov",
    "webm": "alpha.webm",
}
ANNOTATIONS: dict[Result, str] = {"coco": "coco.json", "rle": "rle.json"}
_RESULTS = frozenset((*VIDEOS.values(), *ANNOTATIONS.values(), TABLE, RUN))
# the folder of the masks that were made of boxes
GIVEN = "given"
# folders with files for each frame
_FRAME_FILES = {
    "masks": "*.png",
    "overlay": "*.jpg",
    "cutout": "*.png",
    "soft": "*.png",
    MATTES: "*.png",
    GIVEN: "*.png",
}
START_AGAIN = f"start again with {option('overwrite', True)}"
# in a chain; Linux treats longer ones as loops
_MOST_LINKS = 40
# of files with masks that are not images, or several
_OTHER_SUFFIXES = (".json", ".tif", ".tiff")


@dataclass(frozen=True)
class OutputOptions:
    """How to use an output folder, see :func:`stm_fast.segment_video`. Raises InputError for an unknown result."""

    write: Collection[Result] = DEFAULT_RESULTS
    overwrite: bool = False
    resume: bool = False
    checkpoint_seconds: float = 60.0
    leave_record: bool = False
    overlay_stream: str | Path | None = None

    def __post_init__(self) -> None:
        for result in self.write:
            if result not in RESULTS:
                raise InputError(f"{option('write')}: found {shown(result)}, expected some of {', '.join(RESULTS)}")
        if not self.write:
            raise InputError(f"{option('write')}: found nothing, expected some of {', '.join(RESULTS)}")
        if self.overlay_stream is not None:
            _check_stream(Path(self.overlay_stream))


def _check_stream(path: Path) -> None:
    """Raises InputError if an overlay cannot be streamed there."""
    with reading(path):
        if str(path) == "-" or path.is_fifo():
            return
        if path.exists():
            raise InputError(f"{path}: exists already, expected a named pipe, or the name of a new .ts or .mkv file")
    if path.suffix.lower() not in (".ts", ".mkv"):
        raise InputError(f"{path}: found an overlay stream of this name, expected a .ts or .mkv file, or a named pipe")


class Job(NamedTuple):
    """One video with its masks and its output folder.

    Attributes:
        masks: for one of many videos, the folder with the masks of all.
        mask_frame: the frame that a single mask belongs to; None to go by its name.
        both: also segment the frames before the first given mask, backwards.
        boxes: of objects whose masks are to be made.
    """

    source: FrameSource
    masks: "Masks | None"
    output: Path | StoreUrl
    mask_frame: int | str | None = None
    both: bool = False
    boxes: Boxes = Boxes()

    @property
    def name(self) -> str:
        """The name of the video."""
        return self.source.name

    @property
    def inputs(self) -> list[Path | StoreUrl]:
        """The files and folders that must not be in the output folder."""
        several = self.masks.values() if isinstance(self.masks, Mapping) else (self.masks,)
        masks = [place_of(one) for one in several if isinstance(one, str | Path | StoreUrl)]
        url = self.source.url
        return [*self.source.files, *masks, *self.boxes.files, *([] if url is None else [url.fixed])]

    def with_own_masks(self) -> "Job":
        """The job with the video's own masks: ``masks/<name>.png``, another file, or the folder ``masks/<name>``.

        Raises:
            InputError: there is none, or there are two images.
        """
        folder = self.masks
        found: Path | StoreUrl | None
        if isinstance(folder, Path):
            found = _own_mask(folder, self.name)
        elif isinstance(folder, StoreUrl):
            found = _own_mask_in_store(folder, self.name)
        else:
            raise InputError(f"{option('masks')}: found no folder, expected one with masks for each video")
        if found is not None:
            return self._replace(masks=found)
        raise InputError(
            f"{folder}: no masks for {self.source.label}, expected {self.name}.png or a folder {self.name}"
        )


def _own_mask(folder: Path, name: str) -> Path | None:
    named = (folder / f"{name}{suffix}" for suffix in _OTHER_SUFFIXES)
    return next((path for path in (mask_of(folder, name), *named, folder / name) if path.exists()), None)


def _own_mask_in_store(folder: StoreUrl, name: str) -> StoreUrl | None:
    entries = {entry.name: entry.facts for entry in entries_in(folder)}
    files = [one for one, facts in entries.items() if facts is not None]
    image = mask_among([Path(one) for one in files if is_image(one)], name)
    others = (f"{name}{suffix}" for suffix in _OTHER_SUFFIXES)
    candidates = [str(image), *(one for one in others if one in files), *([name] if name in entries else [])]
    return next((folder / one for one in candidates if one in entries), None)


def plan(
    sources: Sequence[str | Path | FrameSource], masks: Path | StoreUrl | None, output: Path | StoreUrl
) -> list[Job]:
    """A job for each video. A single video gets `output` itself, several get a subfolder each.

    Raises:
        InputError: two videos have the same folder, one has no name or is live, or results would replace an input.
    """
    parsed = [frame_source(source) for source in sources]
    if len(parsed) == 1:
        return [Job(parsed[0], masks, output)]
    jobs: dict[str, Job] = {}
    for source in parsed:
        job = job_of(source, masks, output)
        # links may make two names the same folder
        twin = jobs.setdefault(os.path.realpath(job.output) if isinstance(job.output, Path) else str(job.output), job)
        if twin is not job:
            same = "name" if twin.name == job.name else "folder"
            raise InputError(
                f"{source.label}: same {same} as {twin.source.label}, so the results of both would be in {twin.output}"
            )
    inputs = [file for job in jobs.values() for file in job._replace(masks=None).inputs]
    for job in jobs.values():
        if isinstance(masks, StoreUrl):
            inputs.append(masks / job.name)
            continue
        with suppress(InputError):  # a video without masks is reported when it is processed
            inputs += job.with_own_masks().inputs
    check_apart([job.output for job in jobs.values()], inputs)
    return list(jobs.values())


def job_of(source: FrameSource, masks: Path | StoreUrl | None, output: Path | StoreUrl) -> Job:
    """The job of one of several videos, in a subfolder. Raises InputError if the video has no name or is live."""
    if source.live:
        raise InputError(f"{source.label}: found a live source with other videos, expected it alone")
    return Job(source, masks, output / check_name(source.name, f"{source.label}: name of its results"))


def check_output(
    folder: Path | StoreUrl, overwrite: bool, inputs: Iterable[Path | StoreUrl] = (), *, resume: bool = False
) -> None:
    """Raises InputError if the folder contains an input, or anything that must not be overwritten.

    The folder itself may be a link, for example to another disk; the folders inside it may not.

    Args:
        resume: the folder may contain an interrupted run.
    """
    holds, recorded = _held(folder) if isinstance(folder, Path) else _held_in_store(folder)
    check_apart([folder], inputs)
    if overwrite or not holds:
        return
    if recorded and not resume:
        continues, replaces = option("resume", True), option("overwrite", True)
        raise InputError(f"{folder}: holds a run; {continues} continues it, {replaces} starts again")
    if not recorded:
        why = "not empty, and holds no interrupted run" if resume else "not empty"
        raise InputError(f"{folder}: the output folder is {why}; give another one, or {option('overwrite', True)}")


def _held(folder: Path) -> tuple[bool, bool]:
    """Whether an output folder holds anything, and the record of a run. Raises InputError if it is no such folder."""
    with reading(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            found = "a file" if folder.exists() else "a broken link"
            raise InputError(f"{folder}: found {found}, expected an output folder")
        refuse_links(*parts_of(folder))
        return _holds_anything(folder), (folder / RECORD).exists()


def _held_in_store(url: StoreUrl) -> tuple[bool, bool]:
    names = objects_in(url)
    if not names and facts_of(url) is not None:
        raise InputError(f"{url}: found an object, expected an output folder")
    return bool(names), RECORD in names


def check_apart(folders: Collection[Path | StoreUrl], inputs: Iterable[Path | StoreUrl]) -> None:
    """Raises InputError if an output folder contains an input or one of its files, directly or through a link.

    Removing earlier results could remove the input.
    """
    outputs = {Path(os.path.realpath(folder)): folder for folder in folders if isinstance(folder, Path)}
    urls = {folder for folder in folders if isinstance(folder, StoreUrl)}
    for path in inputs:
        for output, file in _holding(path, outputs) if isinstance(path, Path) else _holding_in_store(path, urls):
            raise InputError(f"{output}: the output folder holds the input {file}; give another one")


def _holding(path: Path, outputs: Mapping[Path, Path]) -> Iterator[tuple[Path, Path]]:
    """The output folders that contain a path or what it leads to, each with the file in it."""
    with reading(path):
        places = [(file, place) for file in (path, *_links_in(path)) for place in _places(file)]
    for file, place in places:
        yield from ((outputs[above], file) for above in (place, *place.parents) if above in outputs)


def _holding_in_store(url: StoreUrl, outputs: Iterable[StoreUrl]) -> Iterator[tuple[StoreUrl, StoreUrl]]:
    yield from ((output, url) for output in outputs if url.is_in(output))


def remove_results(folder: Path | StoreUrl) -> None:
    """Removes the results and the checkpoint of a run. Raises InputError if that fails."""
    if isinstance(folder, StoreUrl):
        _remove_in_store(folder)
        return
    with writing(folder):
        for earlier in (folder / RECORD, *folder.glob(STATES)):
            earlier.unlink(missing_ok=True)
        remove_earlier(folder)
        for part in parts_of(folder):
            _remove_if_empty(part)


def _remove_in_store(url: StoreUrl) -> None:
    names = [name for name in objects_in(url) if is_of_run(name)]
    # without it, these are no results
    remove(url / name for name in names if name == RUN)
    remove(url / name for name in names if name != RUN)


def is_of_run(name: str) -> bool:
    """Whether this path, relative to an output folder, is that of a result of a run or of a part of its checkpoint."""
    folder, slash, file = name.rpartition("/")
    if slash:
        return folder in _FRAME_FILES and fnmatchcase(file, _FRAME_FILES[folder])
    return name in _RESULTS or name == RECORD or fnmatchcase(name, STATES)


def remove_earlier(folder: Path) -> None:
    """Removes the results of an earlier run."""
    for name in _FRAME_FILES:
        _remove_frame_files(folder, name)
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)


def remove_working_files(folder: Path, write: Collection[Result]) -> None:
    """Removes files that were written only to resume the run, and are not among its results."""
    with writing(folder):
        for name in (MATTES,) if "masks" in write else (MATTES, "masks"):
            _remove_frame_files(folder, name)
            _remove_if_empty(folder / name)
        if "csv" not in write:
            (folder / TABLE).unlink(missing_ok=True)


def others_in(folder: Path) -> list[Path]:
    """What is in a folder besides the results of a run and unfinished files. Raises InputError if it cannot be read."""
    with reading(folder):
        if not folder.is_dir():
            return [folder] if folder.exists() else []
        entries = [path for path in folder.iterdir() if path.name not in _RESULTS and not path.match(LEFT_OVER)]
        parts = [path for path in entries if path.name in _FRAME_FILES and path.is_dir() and not path.is_symlink()]
        others = [path for path in entries if path not in parts]
        return others + [path for part in parts for path in part.iterdir() if not path.match(_FRAME_FILES[part.name])]


def parts_of(folder: Path) -> list[Path]:
    """The folders in an output folder that have files for each frame."""
    return [folder / name for name in _FRAME_FILES]


def _remove_frame_files(folder: Path, name: str) -> None:
    for earlier in (folder / name).glob(_FRAME_FILES[name]):
        earlier.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # missing, or it contains files of the user
        folder.rmdir()


def _holds_anything(folder: Path) -> bool:
    """Whether it contains anything but unfinished files of a killed process."""
    return folder.is_dir() and any(not path.match(LEFT_OVER) for path in folder.iterdir())


def _places(path: Path) -> Iterator[Path]:
    """The location of a path, and of everything that it leads to, link by link."""
    for _ in range(_MOST_LINKS):
        # after realpath, a ".." can only be the last part, after a real folder
        path = Path(os.path.normpath(os.path.realpath(path.parent) + os.sep + path.name))
        yield path
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()


def _links_in(folder: Path) -> Iterator[Path]:
    """The symbolic links in a folder."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (folder / entry.name for entry in entries if entry.is_symlink())
