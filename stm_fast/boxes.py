"""Boxes around objects, as a user gives them: in an option, in a file, or from Python."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stm_fast.errors import InputError, option, shown, shown_text
from stm_fast.text_file import parsed_json, read_text

MAX_ID = 255  # of an object
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_OPTION = re.compile(rf"\s*(?:([0-9]{{1,9}}):)?({_NUMBER}(?:\s*,\s*{_NUMBER}){{3}})\s*(?:@(.+))?", re.DOTALL)
_ID = re.compile("[0-9]{1,9}")
# the names of each column
_COLUMNS = {
    "frame": ("frame",),
    "object": ("object", "id", "object_id", "track_id"),
    "x": ("x", "left"),
    "y": ("y", "top"),
    "width": ("width", "w"),
    "height": ("height", "h"),
}
_HEADER = ",".join(_COLUMNS)
_FILE = f"boxes as CSV with the header {_HEADER}, or as JSON {{frame: {{object: [x, y, width, height]}}}}"


class Box(NamedTuple):
    """A rectangle in pixels: its upper left corner, and its size."""

    x: float
    y: float
    width: float
    height: float


T = TypeVar("T")
# by the index or the name of a frame; Any, because a Mapping of int | str is not one of int
ByFrame = Mapping[Any, T]
# of one frame: x, y, width, height in pixels, several of them, or each by the id of its object
BoxesOfFrame = Iterable[float] | Iterable[Iterable[float]] | Mapping[int, Iterable[float]]
# what `boxes_of` accepts
GivenBoxes = str | Path | BoxesOfFrame | ByFrame[BoxesOfFrame]


class BoxPrompt(NamedTuple):
    """A box that a user gives.

    Attributes:
        box: around the object.
        object_id: its id; None for an object that has no other box or mask.
        frame: that it is in, by index or name; None for the first, or the one that `mask_frame` selects.
        label: where the box comes from, for messages.
    """

    box: Box
    object_id: int | None = None
    frame: int | str | None = None
    label: str = option("boxes")


class Boxes(NamedTuple):
    """The boxes of a video, and the files that they were read from."""

    prompts: tuple[BoxPrompt, ...] = ()
    files: tuple[Path, ...] = ()


NO_BOXES = Boxes()


def boxes_of_options(texts: Sequence[str], file: Path | None) -> Boxes:
    """The boxes of the command line: of the option ``--box``, and of a file. Raises InputError."""
    prompts = tuple(map(parse_box, texts))
    return Boxes(prompts) if file is None else Boxes(prompts + read_boxes(file), (file,))


def boxes_of(given: GivenBoxes | None) -> Boxes:
    """The boxes that are given from Python. Raises InputError for anything else.

    Args:
        given: None; the path of a file for `read_boxes`; a box x, y, width, height in pixels, or a list of them for
            objects 1, 2, ... in the first frame; or a mapping from frames, by index or name, to either of these or to
            a mapping from object ids to boxes.
    """
    if given is None:
        return NO_BOXES
    if isinstance(given, str | Path):
        return Boxes(read_boxes(Path(given)), (Path(given),))
    if isinstance(given, Mapping):
        return Boxes(tuple(_of_mapping(given, option("boxes"))))
    return Boxes(tuple(_of_frame(given, None, option("boxes"))))


def parse_box(text: str) -> BoxPrompt:
    """The box in an option: ``x,y,width,height``, with ``@frame`` after it or ``object:`` before it where needed."""
    match = _OPTION.fullmatch(text)
    if match is None:
        expected = "expected x,y,width,height in pixels, such as 310,120,80,160, or 2:310,120,80,160@25"
        raise InputError(f"{option('box')}: found {shown(text)}, {expected}")
    number, numbers, frame = match.groups()
    object_id = None if number is None else _object_id(number, option("box"))
    return BoxPrompt(Box(*map(float, numbers.split(","))), object_id, frame, f"{option('box')} {shown(text)}")


def read_boxes(file: Path) -> tuple[BoxPrompt, ...]:
    """The boxes of a file: CSV with a header, or JSON.

    CSV has the columns frame, object, x, y, width and height, among others and in any order, such as objects.csv of a
    run; rows without a box are skipped. JSON is ``{frame: {object: [x, y, width, height]}}``, or has a list of boxes
    instead of objects. A frame is a name or an index from 0.

    Raises InputError if the file cannot be read, has another content, or no box.
    """
    text = read_text(file, _FILE)
    if text.lstrip().startswith(("{", "[")):
        content = parsed_json(text, file, _FILE)
        if not isinstance(content, dict):
            raise InputError(f"{file}: found {shown(content)}, expected {_FILE}")
        found = tuple(_of_mapping(content, str(file)))
    else:
        found = tuple(_of_table(text, file))
    if not found:
        raise InputError(f"{file}: no box in this file, expected {_FILE}")
    return found


def _of_table(text: str, file: Path) -> Iterator[BoxPrompt]:
    rows = csv.reader(text.splitlines(), strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        places = {column: _place(header, column, names, file) for column, names in _COLUMNS.items()}
        for row in rows:
            line = f"{file}: line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(f"{line}: found {len(row)} cells, expected {len(header)} as in the header")
            frame, number, *numbers = (row[place].strip() for place in places.values())
            if any(numbers):
                yield BoxPrompt(_box(numbers, line), _object_id(number, line), frame, line)
    except csv.Error as error:
        raise InputError(f"{file}: line {rows.line_num}: not CSV ({error}), expected {_FILE}") from None


def _place(header: list[str], column: str, names: tuple[str, ...], file: Path) -> int:
    """Where a column is in a table."""
    found = [header.index(name) for name in names if name in header]
    if not found:
        raise InputError(f"{file}: line 1: found {shown(','.join(header))}, expected a header with {column}: {_HEADER}")
    return found[0]


def _of_mapping(given: Mapping[Any, Any], label: str) -> Iterator[BoxPrompt]:
    for frame, boxes in given.items():
        if type(frame) is bool or not isinstance(frame, int | str):
            frame = _index(frame, label)
        yield from _of_frame(boxes, frame, f"{label}: frame {shown_text(str(frame))}")


def _of_frame(given: Any, frame: int | str | None, label: str) -> Iterator[BoxPrompt]:
    """The boxes of one frame: by object, in a list, or a single one."""
    if isinstance(given, Mapping):
        for number, box in given.items():
            yield BoxPrompt(
                _box(box, f"{label}: object {shown_text(str(number))}"), _object_id(number, label), frame, label
            )
    elif _is_box(given):
        yield BoxPrompt(_box(given, label), None, frame, label)
    else:
        for box in _listed(given, label, "boxes"):
            yield BoxPrompt(_box(box, label), None, frame, label)


def _is_box(given: Any) -> bool:
    """Whether this is meant as a box, and not as a list of them: it starts with a number."""
    try:
        float(next(iter(given)))
    except (TypeError, ValueError, StopIteration):
        return False
    return True


def _box(numbers: Any, label: str) -> Box:
    """A box of four numbers, or of their texts."""
    found = list(_listed(numbers, label, "x, y, width, height"))
    try:
        if len(found) == 4 and not any(isinstance(one, bool) for one in found):
            return Box(*map(float, found))
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{label}: found {shown(numbers)}, expected a box x, y, width, height in pixels")


def _listed(given: Any, label: str, what: str) -> Iterable[Any]:
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        raise InputError(f"{label}: found {shown(given)}, expected {what}")
    return given  # type: ignore[no-any-return]


def _object_id(given: Any, label: str) -> int:
    """An id from 1 to 255, given as a number or as its text."""
    number = _index(given, label)
    if not 1 <= number <= MAX_ID:
        raise InputError(f"{label}: found object {shown(given)}, expected 1 to {MAX_ID}")
    return number


def _index(given: Any, label: str) -> int:
    """A whole number, given as one or as its text."""
    if isinstance(given, str) and _ID.fullmatch(given):
        return int(given)
    if type(given) is not bool and hasattr(given, "__index__"):
        return int(given.__index__())
    raise InputError(f"{label}: found {shown(given)}, expected a whole number")
