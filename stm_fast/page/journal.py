"""The journal of a project: what was seen in each tracked frame, one line of JSON for each change."""

import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from stm_fast.errors import InputError, reading, shown
from stm_fast.inference.sightings import Sighting
from stm_fast.page.objects import LARGEST_ID
from stm_fast.whole_file import whole_file, writing

ObjectId = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Share = Annotated[float, Field(ge=0, le=1)]
State = Literal["found", "doubtful", "lost"]
Seen = tuple[ObjectId, Annotated[int, Field(ge=0, le=2**31)], Share, Share, State]
Line = tuple[Annotated[int, Field(ge=0, lt=2**31)], list[Seen]]

_LINE = TypeAdapter(Line)
_LINES = TypeAdapter(list[Line])
_MOST_BYTES = 2**30
_EXPECTED = "expected [frame, [[object, pixels, probability, score, state], ...]]"


class Journal:
    """What tracking saw of the objects in each frame. The last line of a frame counts; one without objects forgets it.

    The file is read once, and rewritten if lines are superseded. A last line that was not completed is left out.

    Args:
        path: of the file, which may not exist yet.
        frame_count: of the video.

    Raises:
        InputError: another line, or a frame that the video does not have; it cannot be read or written.
    """

    def __init__(self, path: Path, frame_count: int) -> None:
        self._path = path
        # becoming sightings only when they are asked for, because a long video has a million
        self._seen: dict[int, Sequence[Seen]] = {}
        lines, whole = _lines_of(path)
        for number, (frame, seen) in enumerate(_parsed(path, lines, whole), 1):
            if frame >= frame_count:
                raise InputError(f"{path}: line {number}: found frame {frame}, expected one before {frame_count}")
            self._take(frame, seen)
        if len(self._seen) < len(lines):
            with whole_file(path) as partial:
                partial.write_bytes(b"".join(_line(frame, seen) for frame, seen in self._seen.items()))
        with writing(path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
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


def _parsed(path: Path, lines: list[bytes], whole: bool) -> list[Line]:
    """The content of the lines, without a last one that is not complete."""
    complete = lines if whole else lines[:-1]
    with suppress(ValidationError):  # all at once, which is much faster
        parsed = _LINES.validate_json(b"[" + b",".join(complete) + b"]", strict=True)
        if len(parsed) == len(complete):
            return parsed
    return [_parsed_line(path, number, line) for number, line in enumerate(complete, 1)]


def _parsed_line(path: Path, number: int, line: bytes) -> Line:
    try:
        return _LINE.validate_json(line, strict=True)
    except ValidationError:
        found = shown(line.decode(errors="replace"))
        raise InputError(f"{path}: line {number}: found {found}, {_EXPECTED}") from None
