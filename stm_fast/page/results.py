"""The results that a project can export, and those that it has."""

import functools
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stm_fast.choices import DEFAULT_RESULTS, RESULTS, Result
from stm_fast.errors import InputError, check_name, reading
from stm_fast.runs.sinks import require_encoders

_TITLES: dict[Result, str] = {
    "masks": "Masks of object ids (PNG)",
    "overlay": "Video with the masks drawn on it (MP4)",
    "pictures": "Pictures with the masks drawn on them (JPEG)",
    "matte": "Matte video in gray (MP4)",
    "alpha": "Video with alpha channel, ProRes 4444 (MOV)",
    "webm": "Video with alpha channel, VP9 (WebM)",
    "cutout": "Cut-outs with alpha channel (PNG)",
    "soft": "Probabilities of each object (16-bit PNG)",
    "csv": "Table of the objects in each frame (CSV)",
    "coco": "Annotations in the format of COCO (JSON)",
    "rle": "Annotations in the format of YouTube-VIS (JSON)",
}


class Found(NamedTuple):
    """A result: a file, or a folder of files; `files` is their number."""

    name: str
    bytes: int
    files: int


def choices() -> list[dict[str, Any]]:
    """Every result with its title, whether it is one of the default ones, and why it cannot be written here."""
    return [
        {"name": name, "title": _TITLES[name], "default": name in DEFAULT_RESULTS, "unavailable": _unavailable(name)}
        for name in RESULTS
    ]


@functools.cache
def _unavailable(result: Result) -> str | None:
    try:
        require_encoders(Path(), [result])
    except InputError as error:
        return str(error)
    return None


def found_in(folder: Path) -> list[Found]:
    """The results in a folder, by name; none if it does not exist."""
    with reading(folder):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        return [_found(path) for path in paths if not path.name.startswith(".") and not path.is_symlink()]


def _found(path: Path) -> Found:
    sizes = [file.stat().st_size for file in _files_of(path)]
    return Found(path.name, sum(sizes), len(sizes))


def find(folder: Path, name: str) -> Path | None:
    """The result with a name; None if there is none. Raises InputError if it is not the name of a file."""
    check_name(name, "name of the result")
    path = folder / name
    with reading(path):
        return path if path.exists() and not path.is_symlink() else None


def zipped(folder: Path) -> Iterator[bytes]:
    """The files of a folder as a zip archive, in pieces of about one file; not compressed, as images are."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", strict_timestamps=False) as archive:
        for file in _files_of(folder):
            archive.write(file, f"{folder.name}/{file.name}")
            yield pieces.take()
    yield pieces.take()


def _files_of(path: Path) -> list[Path]:
    """A file itself, or those of a folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.is_symlink())


class _Pieces(io.RawIOBase):
    """What an archive writes until it is taken."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken
