"""scores.csv: how sure the network is of each object in each frame."""

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from stm_fast.errors import reading
from stm_fast.inference.output_folder import SCORES
from stm_fast.video import Frame
from stm_fast.whole_file import make_folder, whole_file, writing

_COLUMNS = ("index", "frame", "object", "pixels", "score")


class ScoreTable:
    """Writes a line for each object of each frame, frame by frame.

    Args:
        folder: of the results.
        frames: that an earlier process has done: their lines stay, others go.
    """

    def __init__(self, folder: Path, frames: int) -> None:
        self._path = folder / SCORES
        make_folder(folder)
        kept = (line for line in _lines(self._path) if int(line[0]) < frames)
        with whole_file(self._path) as partial, _open(partial, "w") as file:
            _rows(file).writerows([_COLUMNS, *kept])
        with writing(self._path):
            self._file = _open(self._path, "a")

    def write(self, frame: Frame, ids: npt.NDArray[np.uint8], scores: Mapping[int, float]) -> None:
        """The lines of one frame, with ids ``[H, W]`` and the score of each object that exists."""
        pixels = np.bincount(ids.ravel(), minlength=256)
        rows = [(frame.index, frame.name, number, pixels[number], f"{score:.3f}") for number, score in scores.items()]
        with writing(self._path):
            _rows(self._file).writerows(rows)

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more will be written."""
        with writing(self._path):
            self._file.close()


class Sight(NamedTuple):
    """In which frames an object was found."""

    object_id: int
    frames: int  # since it appeared
    missing: int  # in which it has no pixel
    last: str  # the name of the last one in which it has some


def sights(folder: Path) -> list[Sight]:
    """Of every object of a run, in the order of their appearance; nothing where the folder has no table."""
    found: dict[str, Sight] = {}
    for _, frame, number, pixels, _ in _lines(folder / SCORES):
        before = found.get(number, Sight(int(number), 0, 0, frame))
        seen = int(pixels) > 0
        last = frame if seen else before.last
        found[number] = Sight(before.object_id, before.frames + 1, before.missing + (not seen), last)
    return list(found.values())


def _lines(path: Path) -> Iterator[list[str]]:
    """The lines below the header, if there is a table; what a killed process has begun is not one."""
    if not path.is_file():
        return
    with reading(path), _open(path, "r") as file:
        for line in csv.reader(file):
            if len(line) == len(_COLUMNS) and line[0].isdecimal():
                yield line


def _open(path: Path, mode: Literal["r", "w", "a"]) -> TextIO:
    # names of files may be no text
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")


def _rows(file: TextIO) -> Any:
    return csv.writer(file, lineterminator="\n")
