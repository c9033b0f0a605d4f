"""scores.csv: the score of each object in each frame, see `object_scores`."""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stm_fast.csv_file import csv_lines, open_csv, read_csv
from stm_fast.errors import InputError, reading
from stm_fast.runs.loop import Segmented
from stm_fast.runs.output_folder import SCORES, START_AGAIN
from stm_fast.whole_file import make_folder, whole_file, writing

# name and pattern of each column
_COLUMNS = {
    "index": "[0-9]{1,18}",
    "frame": "(?s:.+)",
    "object": "[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5]",
    "pixels": "[0-9]{1,18}",
    "score": r"[01](?:\.[0-9]+)?",
}
_MOST_SHOWN = 200  # characters of a line in a message


class ScoreTable:
    """Writes a line for each object of each frame.

    Args:
        folder: the output folder.
        frames: the number of frames that an earlier process has done: their lines are kept, others removed.
        checksum: of these lines; None if unknown.

    Attributes:
        checksum: of all lines written so far.

    Raises:
        InputError: the kept lines have another checksum, or, now or later, the table cannot be written.
    """

    def __init__(self, folder: Path, frames: int, checksum: int | None = None) -> None:
        self._path = folder / SCORES
        make_folder(folder)
        kept = csv_lines([_COLUMNS, *_beginning(self._path, frames)])
        self.checksum = _crc(kept, 0)
        if checksum is not None and self.checksum != checksum:
            raise InputError(
                f"{self._path}: the lines of the first {frames} frames cannot be read, or are not what was written; "
                f"{START_AGAIN}"
            )
        with whole_file(self._path) as partial, open_csv(partial, "w") as file:
            file.write(kept)
        with writing(self._path):
            self._file = open_csv(self._path, "a")

    def write(self, segmented: Segmented) -> None:
        """Writes the lines of one frame; those of a frame without ids exist already."""
        frame, ids, sightings = segmented[:3]
        if ids is None:
            return
        lines = csv_lines((frame.index, frame.name, one.object_id, one.pixels, f"{one.score:.3f}") for one in sightings)
        with writing(self._path):
            self._file.write(lines)
        self.checksum = _crc(lines, self.checksum)

    def sync(self) -> None:
        """Waits until every line is on disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()


class Sight(NamedTuple):
    """How often an object was found."""

    object_id: int
    frames: int  # since it appeared
    missing: int  # frames in which it has no pixel
    last: str  # the name of the last frame in which it has pixels


def sights(folder: Path) -> list[Sight]:
    """One for each object of a run, in order of appearance; none if the folder has no table.

    Raises InputError for a damaged table.
    """
    found: dict[int, Sight] = {}
    for line in _lines(folder / SCORES):
        before = found.get(line.object_id, Sight(line.object_id, 0, 0, line.frame))
        seen = line.pixels > 0
        last = line.frame if seen else before.last
        found[line.object_id] = Sight(line.object_id, before.frames + 1, before.missing + (not seen), last)
    return list(found.values())


class _Line(NamedTuple):
    frame_index: int
    frame: str  # its name
    object_id: int
    pixels: int
    score: str


def _beginning(path: Path, frames: int) -> Iterator[_Line]:
    """The lines of the first frames, up to the first invalid one, which a killed process may leave."""
    with suppress(InputError):
        for line in _lines(path) if frames else ():
            if line.frame_index >= frames:
                break
            yield line


def _lines(path: Path) -> Iterator[_Line]:
    """The lines below the header; none without a table. Raises InputError for a damaged table."""
    if not path.is_file():
        return
    with reading(path), open_csv(path, "r") as file:
        rows = read_csv(file)
        try:
            header = next(rows, [])
            if header != list(_COLUMNS):
                raise ValueError(f"found {str(header)[:_MOST_SHOWN]}, expected {','.join(_COLUMNS)}")
            for cells in rows:
                yield _line(cells)
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove it, or {START_AGAIN}") from None


def _line(cells: list[str]) -> _Line:
    if len(cells) != len(_COLUMNS) or not all(map(re.fullmatch, _COLUMNS.values(), cells)):
        expected = "the index and name of a frame, an object, its pixels and its score"
        raise ValueError(f"found the line {str(cells)[:_MOST_SHOWN]}, expected {expected}")
    index, frame, object_id, pixels, score = cells
    return _Line(int(index), frame, int(object_id), int(pixels), score)


def _crc(lines: str, before: int) -> int:
    return zlib.crc32(lines.encode("utf-8", "surrogateescape"), before)
