"""coco.json and rle.json: the masks of a run as run lengths. Made at its end from masks/*.png and objects.csv.

One mask is held at a time, and the files are the same after a resumed run.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, TextIO

from stm_fast.choices import Result
from stm_fast.runs.object_table import Row, extent, read_table
from stm_fast.runs.output_folder import ANNOTATIONS
from stm_fast.video import FrameReader, read_written_mask
from stm_fast.video.run_lengths import encode
from stm_fast.whole_file import whole_file


class _Shape(NamedTuple):
    """An object in a frame."""

    row: Row
    segmentation: dict[str, Any]
    box: list[int]  # x, y, width, height


def write_annotations(
    folder: Path, reader: FrameReader, frames: int, objects: Mapping[int, str], write: Collection[Result]
) -> None:
    """Writes those of the files that are among the results `write`.

    Args:
        folder: the output folder, with the masks and the table of the whole run.
        reader: of the video.
        frames: their number.
        objects: the names of all objects of the run, by id.

    Raises:
        InputError: a mask or the table is missing or damaged, or a file cannot be written.
    """
    categories = [{"id": number, "name": name, "supercategory": "object"} for number, name in sorted(objects.items())]
    for result, fill in _WRITERS.items():
        if result in write:
            path = folder / ANNOTATIONS[result]
            with whole_file(path, durable=True) as partial, partial.open("w", encoding="ascii", newline="\n") as file:
                file.write('{\n"categories": ')
                _write_list(file, categories)
                fill(file, folder, reader, range(frames), sorted(objects))
                file.write("\n}\n")


def _fill_coco(file: TextIO, folder: Path, reader: FrameReader, frames: range, ids: Sequence[int]) -> None:
    """The frames as images, and an annotation for each object in each frame."""
    size = {"height": reader.height, "width": reader.width}
    file.write(',\n"images": ')
    _write_list(file, ({"id": index, "file_name": reader.file_name(index), **size} for index in frames))
    file.write(',\n"annotations": ')
    _write_list(file, (_annotation(number, shape) for number, shape in enumerate(_shapes(folder), start=1)))


def _annotation(number: int, shape: _Shape) -> dict[str, Any]:
    row = shape.row
    return {
        "id": number,
        "image_id": row.frame_index,
        "category_id": row.object_id,
        "object_id": row.object_id,
        "segmentation": shape.segmentation,
        "bbox": shape.box,
        "area": row.pixels,
        "iscrowd": 0,
        "score": float(row.score),
    }


def _fill_youtube_vis(file: TextIO, folder: Path, reader: FrameReader, frames: range, ids: Sequence[int]) -> None:
    """One video, and an annotation for each object, with null in frames in which it has no pixel."""
    size = {"height": reader.height, "width": reader.width}
    names = [reader.file_name(index) for index in frames]
    file.write(',\n"videos": ')
    _write_list(file, [{"id": 1, "name": reader.name, **size, "length": len(frames), "file_names": names}])
    with ExitStack() as stack:
        tracks = {number: _Track(stack.enter_context(TemporaryFile("w+", dir=folder))) for number in ids}
        for shape in _shapes(folder):
            tracks[shape.row.object_id].add(shape)
        file.write(',\n"annotations": [')
        for place, (number, track) in enumerate(tracks.items()):
            facts = {"id": number, "video_id": 1, "category_id": number, "object_id": number, "iscrowd": 0, **size}
            file.write(f"{',' * bool(place)}\n{json.dumps(facts)[:-1]}")
            track.write(file, len(frames))
            file.write("}")
        file.write("\n]")


class _Track:
    """One object in all frames, in an unnamed file with a line for each frame, because it may not fit into memory."""

    def __init__(self, lines: IO[str]) -> None:
        self._lines, self._count = lines, 0

    def add(self, shape: _Shape) -> None:
        self._pad(shape.row.frame_index)
        json.dump([shape.segmentation, shape.box, shape.row.pixels], self._lines)
        self._lines.write("\n")
        self._count += 1

    def write(self, file: TextIO, frames: int) -> None:
        """Writes the entries that have a value for each frame."""
        self._pad(frames)
        for place, key in enumerate(("segmentations", "bboxes", "areas")):
            self._lines.seek(0)
            file.write(f', "{key}": ')
            lines = map(json.loads, self._lines)
            _write_list(file, (None if line is None else line[place] for line in lines))

    def _pad(self, frames: int) -> None:
        self._lines.write("null\n" * (frames - self._count))
        self._count = max(self._count, frames)


_WRITERS: dict[Result, Callable[[TextIO, Path, FrameReader, range, Sequence[int]], None]] = {
    "coco": _fill_coco,
    "rle": _fill_youtube_vis,
}


def _shapes(folder: Path) -> Iterator[_Shape]:
    """The objects that have pixels, frame by frame."""
    for _, group in groupby(read_table(folder), key=attrgetter("frame_index")):
        rows = [row for row in group if row.pixels]
        if rows:
            ids = read_written_mask(folder / "masks" / f"{rows[0].frame}.png").ids
            for row in rows:
                own = ids == row.object_id
                (x, width, _), (y, height, _) = extent(own.sum(0)), extent(own.sum(1))
                yield _Shape(row, encode(own), [x, y, width, height])


def _write_list(file: TextIO, items: Iterable[object]) -> None:
    """A JSON list with an item on each line."""
    file.write("[")
    for place, item in enumerate(items):
        file.write(",\n" if place else "\n")
        file.write(json.dumps(item))
    file.write("\n]")
