"""The journal of a project: what was seen in each tracked frame, one line of JSON for each change."""

import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from stm_fast.errors import InputError, reading
from stm_fast.inference.sightings import Sighting
from stm_fast.page.objects import LARGEST_ID
from stm_fast.system import AS_BYTES, NO_LINK
from stm_fast.whole_file import whole_file, writing

ObjectId = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Share = Annotated[float, Field(ge=0, le=1)]
State = Literal["found", "doubtful", "lost"]
Seen = tuple[ObjectId, Annotated[int, Field(ge=0, le=2**31)], Share, Share, State]
Line = tuple[Annotated[int, Field(ge=0, lt=2**31)], list[Seen]]

_LINE = TypeAdapter(Line)
_LINES = TypeAdapter(list[Line])
_MOST_BYTES = 2**30
_FRAME = re.compile(rb"\[([0-9]{1,10}),")  # what a line starts with

logger = logging.getLogger(__name__)


class Journal:
    """What tracking saw of the objects in each frame. The last line of a frame counts; one without objects forgets it.

    The file is read once, and rewritten if lines are superseded. A last line that was not completed is left out. So are
    damaged lines, as a power failure leaves them, with a note: nothing was seen in their frames, as far as these can be
    read, unless a later line says so.

    Args:
        path: of the file, which may not exist yet.
        frame_count: of the video.

    Raises:
        InputError: it is no file or too large, or cannot be read or written.
    """

    def __init__(self, path: Path, frame_count: int) -> None:
        self._path = path
        # becoming sightings only when they are asked for, because a long video has a million
        self._seen: dict[int, Sequence[Seen]] = {}
        lines, whole = _lines_of(path)
        damaged = 0
        for line, parsed in _parsed(lines if whole else lines[:-1]):
            frame, seen = parsed or (_frame_of(line), ())
            self._take(frame, seen if frame < frame_count else ())
            damaged += parsed is None or frame >= frame_count
        if damaged:
            found = f"{damaged} damaged line{'s' * (damaged > 1)}"
            logger.warning("%s: found %s; what was found in these frames is left out, track them again", path, found)
        if len(self._seen) < len(lines):
            with whole_file(path, durable=True) as partial:
                partial.write_bytes(b"".join(_line(frame, seen) for frame, seen in self._seen.items()))
        with writing(path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | AS_BYTES | NO_LINK
            self._file = os.open(path, flags, 0o644)
            self._size = os.fstat(self._file).st_size

    @property
    def frames(self) -> Iterable[int]:
        """The frames in which something was seen."""
        return self._seen.keys()

    def at(self, frame: int) -> tuple[Sighting, ...]:
        """What was seen in a frame."""
        return tuple(Sighting(*one) for one in self._seen.get(frame, ()))

    def states(self, frame: int, object_ids: Collection[int]) -> list[State]:
        """The states of some objects in a frame, of those that were seen."""
        return [one[-1] for one in self._seen.get(frame, ()) if one[0] in object_ids]

    def note(self, frame: int, sightings: Sequence[Sighting]) -> None:
        """Replaces what was seen in a frame. Raises InputError if it cannot be written; nothing has changed then."""
        line = _line(frame, sightings)
        with writing(self._path):
            try:
                rest = line
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, self._size)  # the next line must not follow a part of this one
                raise
        self._size += len(line)
        self._take(frame, tuple(sightings))

    def forget(self, frame: int) -> None:
        """Leaves a frame out until the file is read again."""
        self._seen.pop(frame, None)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _take(self, frame: int, seen: Sequence[Seen]) -> None:
        if seen:
            self._seen[frame] = seen
        else:
            self.forget(frame)


def _line(frame: int, seen: Sequence[Seen]) -> bytes:
    return json.dumps([frame, seen], separators=(",", ":")).encode() + b"\n"


def _lines_of(path: Path) -> tuple[list[bytes], bool]:
    """The lines of the file, and whether the last one is complete."""
    with reading(path):
        if not path.exists():
            return [], True
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: found something else, expected a file of {_MOST_BYTES} bytes at most")
        content = path.read_bytes()
    return content.splitlines(), content.endswith(b"\n") or not content


def _parsed(lines: list[bytes]) -> Iterable[tuple[bytes, Line | None]]:
    """The lines with their content; None for a damaged one."""
    with suppress(ValidationError):  # all at once, which is much faster
        parsed = _LINES.validate_json(b"[" + b",".join(lines) + b"]", strict=True)
        if len(parsed) == len(lines):
            return zip(lines, parsed, strict=True)
    return [(line, _parsed_line(line)) for line in lines]


def _parsed_line(line: bytes) -> Line | None:
    try:
        return _LINE.validate_json(line, strict=True)
    except ValidationError:
        return None


def _frame_of(damaged: bytes) -> int:
    """The frame of a damaged line; -1, which no video has, if it cannot be read."""
    start = _FRAME.match(damaged)
    return -1 if start is None else int(start[1])
