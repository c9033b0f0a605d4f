"""objects.csv: what was seen of each object in each frame. A line for each, in the order of the video once it is whole.

H x W pixels.
"""

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from stm_fast.csv_file import csv_lines, open_csv, read_csv
from stm_fast.errors import InputError, reading
from stm_fast.inference.sightings import STATES, Sighting, State, Watch
from stm_fast.runs.loop import Segmented
from stm_fast.runs.output_folder import START_AGAIN, TABLE
from stm_fast.whole_file import make_folder, whole_file, writing

_NUMBER, _SIDE, _CENTER, _SHARE = "[0-9]{1,18}", "[0-9]{0,9}", r"(?:[0-9]{1,9}\.[0-9]{2})?", r"[01]\.[0-9]{3}"
# name and pattern of each column, the fields of `Row`
_COLUMNS = {
    "index": _NUMBER,
    "frame": "(?s:.+)",
    "time": r"[0-9]{1,18}\.[0-9]{6}",
    "object": "[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5]",
    "pixels": _NUMBER,
    "x": _SIDE,
    "y": _SIDE,
    "width": _SIDE,
    "height": _SIDE,
    "center_x": _CENTER,
    "center_y": _CENTER,
    "probability": _SHARE,
    "score": _SHARE,
    "state": "|".join(STATES),
}
_MOST_SHOWN = 200  # characters of a line in a message
# the cells from x to center_y
_Place = tuple[str, str, str, str, str, str]
_NOWHERE: _Place = ("",) * 6
MOST_SPANS = 3  # of doubtful frames in a message


class Row(NamedTuple):
    """One object in one frame."""

    frame_index: int
    frame: str  # its name
    time: str  # seconds since the first frame
    object_id: int
    pixels: int
    x: str  # of the tight box, in pixels; empty for a lost object, like the five below
    y: str
    width: str
    height: str
    center_x: str  # the mean of its pixels
    center_y: str
    probability: str  # see `Sighting`
    score: str
    state: State


class ObjectTable:
    """Writes a line for each object of each frame.

    Args:
        folder: the output folder.
        done: the indices of the frames whose lines are kept, in the order in which frames come; others are removed. The
            kept lines are put into this order.
        checksum: of the kept lines, in any order; None if unknown.
        areas: as of `Watch`, before the kept lines.

    Attributes:
        checksum: of all lines written so far.
        watch: it has seen the kept lines.

    Raises:
        InputError: the kept lines have another checksum, or, now or later, the table cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        done: range = range(0),
        checksum: int | None = None,
        areas: Mapping[int, int] | None = None,
    ) -> None:
        self._path = folder / TABLE
        self.checksum, self.watch = 0, Watch(areas)
        make_folder(folder)
        with whole_file(self._path) as partial, open_csv(partial, "w") as self._file:
            self._file.write(csv_lines([_COLUMNS]))
            for row in _kept(folder, done):
                self._append(row)
                self.watch.note(_sighting(row))
            if checksum is not None and self.checksum != checksum:
                raise InputError(
                    f"{self._path}: the lines of the first {len(done)} frames cannot be read, or are not what was "
                    f"written; {START_AGAIN}"
                )
        with writing(self._path):
            self._file = open_csv(self._path, "a")

    def write(self, segmented: Segmented) -> None:
        """Writes the lines of one frame; those of a frame without ids exist already."""
        frame, ids = segmented.frame, segmented.ids
        if ids is None:
            return
        with writing(self._path):
            for one in segmented.sightings:
                place = _NOWHERE if one.state == "lost" or not one.pixels else _place(ids == one.object_id)
                shares = f"{one.probability:.3f}", f"{one.score:.3f}"
                name = frame.index, frame.name, f"{frame.time:.6f}", one.object_id
                self._append(Row(*name, one.pixels, *place, *shares, one.state))

    def sync(self) -> None:
        """Waits until every line is on disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()

    def _append(self, row: Row) -> None:
        line = csv_lines([row])
        self._file.write(line)
        # a sum, because the order of the lines may change
        self.checksum = (self.checksum + zlib.crc32(line.encode("utf-8", "surrogateescape"))) % 2**32


@dataclass
class Sight:
    """How often an object was found.

    Attributes:
        frames: since it appeared.
        lost, doubtful: the number of frames in which it is that.
        state: in the last frame.
        last: the name of the last frame in which it is not lost.
        spans: the names of the first and last of consecutive doubtful frames; at most `MOST_SPANS` and one more.
    """

    object_id: int
    frames: int = 0
    lost: int = 0
    doubtful: int = 0
    state: State = "found"
    last: str = ""
    spans: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Counts the next frame."""
        before, self.state = self.state, row.state
        self.frames += 1
        self.lost += row.state == "lost"
        self.doubtful += row.state == "doubtful"
        if row.state != "lost":
            self.last = row.frame
        if row.state == before == "doubtful":
            self.spans[-1] = self.spans[-1][0], row.frame
        elif row.state == "doubtful" and len(self.spans) <= MOST_SPANS:
            self.spans.append((row.frame, row.frame))


def sights(folder: Path) -> list[Sight]:
    """One for each object of a run, in order of appearance; none if the folder has no table.

    Raises InputError for a damaged table.
    """
    found: dict[int, Sight] = {}
    for row in read_table(folder):
        found.setdefault(row.object_id, Sight(row.object_id)).add(row)
    return list(found.values())


def read_table(folder: Path) -> Iterator[Row]:
    """The lines below the header; none without a table. Raises InputError for a damaged table."""
    path = folder / TABLE
    if not path.is_file():
        return
    with reading(path), open_csv(path, "r") as file:
        lines = read_csv(file)
        try:
            header = next(lines, [])
            if header != list(_COLUMNS):
                raise ValueError(f"found {str(header)[:_MOST_SHOWN]}, expected {','.join(_COLUMNS)}")
            for cells in lines:
                yield _row(cells)
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove it, or {START_AGAIN}") from None


def _kept(folder: Path, done: range) -> Iterator[Row]:
    """The rows of these frames, in their order."""
    if not done:
        return

    def place(row: Row) -> int:
        return row.frame_index * done.step

    # usually they are in order, and need not be held
    ordered = all(place(one) <= place(other) for one, other in pairwise(_readable(folder, done)))
    rows = _readable(folder, done)
    yield from rows if ordered else sorted(rows, key=place)


def _readable(folder: Path, done: range) -> Iterator[Row]:
    """The rows of these frames, up to the first invalid row, which a killed process may leave."""
    with suppress(InputError):
        for row in read_table(folder):
            if row.frame_index in done:
                yield row


def _row(cells: list[str]) -> Row:
    if len(cells) != len(_COLUMNS) or not all(map(re.fullmatch, _COLUMNS.values(), cells)):
        raise ValueError(f"found the line {str(cells)[:_MOST_SHOWN]}, expected {','.join(_COLUMNS)}")
    index, frame, time, object_id, pixels, x, y, width, height, center_x, center_y, probability, score, state = cells
    place = x, y, width, height, center_x, center_y
    return Row(int(index), frame, time, int(object_id), int(pixels), *place, probability, score, cast(State, state))


def _sighting(row: Row) -> Sighting:
    return Sighting(row.object_id, row.pixels, float(row.probability), float(row.score), row.state)


def _place(own: npt.NDArray[np.bool_]) -> _Place:
    """The cells from x to center_y of an object with the pixels `own` [H, W]."""
    x, width, center_x = extent(own.sum(0))
    y, height, center_y = extent(own.sum(1))
    return str(x), str(y), str(width), str(height), f"{center_x:.2f}", f"{center_y:.2f}"


def extent(counts: npt.NDArray[np.int64]) -> tuple[int, int, float]:
    """The first index with a pixel, the number of indices up to the last one, and the mean index of all pixels."""
    used = np.flatnonzero(counts)
    return int(used[0]), int(used[-1] - used[0] + 1), float(used @ counts[used] / counts.sum())
