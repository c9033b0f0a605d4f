"""Which frame a user means, by its name or its index."""

import re

import numpy as np

from stm_fast.errors import InputError, shown
from stm_fast.video import FrameReader


def index_of(frame: int | str, reader: FrameReader, label: str) -> int:
    """The index of the frame that a user selects: text is a name if a frame has it, otherwise an index.

    Raises InputError, which starts with `label`, if there is no such frame.
    """
    index = reader.index_of(frame) if isinstance(frame, str) else frame
    if index is None and re.fullmatch("[0-9]{1,18}", str(frame)):
        index = int(frame)
    count = reader.frame_count
    valid = isinstance(index, int | np.integer) and type(index) is not bool
    if index is None or not valid or index < 0 or (count is not None and index >= count):
        most = "" if count is None else f" to {count - 1}"
        expected = f"expected the name of a frame of {reader.name}, or an index from 0{most}"
        raise InputError(f"{label}: found {shown(frame)}, {expected}")
    index = int(index)
    name = reader.name_of(index)
    # names may be numbered from 1
    if isinstance(frame, str) and name.isdecimal() and int(name) != int(frame):
        raise InputError(f"{label}: found {frame}, but the frame at that index is {name}; expected a name")
    return index


def index_by_name(name: str | int | None, reader: FrameReader) -> tuple[int, str]:
    """The frame that has exactly the mask's name, or else the first; and an explanation where that may surprise."""
    if not isinstance(name, str):
        return name or 0, ""
    index = reader.index_of(name)
    if index == 0:
        return 0, ""
    if index is None or reader.name_of(index) != name:
        surprising = name.isdecimal() and name != reader.name
        return 0, "no frame has this name, so it is used for the first one" if surprising else ""
    if name == reader.name:
        return 0, "named after the video, so used for the first frame"
    return index, f"named after frame {name}, so used for that frame"
