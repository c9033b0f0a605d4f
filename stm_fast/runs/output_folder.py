"""The output folder of a run: what in it belongs to a run, and whether another one may begin there."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stm_fast.errors import InputError, reading
from stm_fast.whole_file import LEFT_OVER, refuse_links, writing

# of the checkpoint, see `checkpoint`
RECORD = ".resume.json"
STATES = ".resume-*.safetensors"
# how sure the network was of each object in each frame, see `score_table`
SCORES = "scores.csv"
START_AGAIN = "start again with overwrite=True"
# in a chain: beyond that Linux calls it a loop
_MOST_LINKS = 40


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
        raise InputError(f"{folder}: holds a run; resume=True continues it, overwrite=True starts again")
    if not recorded:
        why = "not empty, and holds no interrupted run" if resume else "not empty"
        raise InputError(f"{folder}: the output folder is {why}; give another one, or overwrite=True")


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
